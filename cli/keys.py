"""The commands `evergreen keys add`, `list` and `remove` for the keys of prediction services."""

from typing import Annotated

import typer

from api.http.bearer_keys import KeyFile
from cli.output import Json, as_json, as_table, err, out
from utils.clock import utc_now
from utils.settings import load_settings

Name = Annotated[str, typer.Argument(help="Who uses it: a client, a team.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    group = typer.Typer(no_args_is_help=True)
    group.command()(add)
    group.command("list")(list_keys)
    group.command()(remove)
    app.add_typer(group, name="keys", help="Who may ask the services. Example: `evergreen keys add shop`")


def add(name: Name, json: Json = False) -> None:
    """Make a key and print it, once: only its hash is kept. Running services take it within a second.

    To exchange a key, add another of the same name, let the client use it, then remove the old one:

        evergreen keys add shop

        evergreen keys remove shop --older
    """
    token = KeyFile(load_settings()).add(name, now=utc_now())
    if json:
        as_json({"name": name, "key": token})
        return
    err.print(f"a key for {name}, shown this once; requests carry it as `Authorization: Bearer KEY`:", markup=False)
    out.print(token, markup=False, soft_wrap=True)


def list_keys(json: Json = False) -> None:
    """Show the names of all keys and when they were made. The key in EVERGREEN_API_KEY is not among them.

    Example: `evergreen keys list`
    """
    rows = [{"name": key.name, "created_at": key.created_at} for key in KeyFile(load_settings()).read()]
    if json:
        as_json(rows)
    elif rows:
        as_table(rows)
    else:
        out.print("there is no key; `evergreen keys add NAME` makes one", markup=False)


def remove(
    name: Name,
    older: Annotated[bool, typer.Option("--older", help="Keep the newest of this name.")] = False,
    json: Json = False,
) -> None:
    """Remove a name's keys. Running services refuse them within a second.

    Example: `evergreen keys remove shop`
    """
    count = KeyFile(load_settings()).remove(name, older=older)
    if json:
        as_json({"name": name, "removed": count})
    else:
        out.print(f"{count} key{'s' if count > 1 else ''} of {name} removed", markup=False)
