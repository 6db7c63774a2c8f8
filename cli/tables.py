"""Commands for tables: `evergreen migrate`."""

from typing import Annotated

import typer

from cli.output import as_json, out
from utils.settings import load_settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(migrate)


def migrate(
    create: Annotated[
        bool, typer.Option("--create", help="First make databases and users, as EVERGREEN_MARIADB_ROOT_USER.")
    ] = False,
    json: Json = False,
) -> None:
    """Make what is missing of the tables: the platform's, and those of every model file.

    Examples: `evergreen migrate`, `evergreen migrate --create`
    """
    from db import bootstrap
    from pipelines.spec import load_spec, model_names

    settings = load_settings()
    specs = [load_spec(settings.models_dir / f"{name}.yaml") for name in model_names(settings.models_dir)]
    if create:
        bootstrap.create_databases_and_users(settings)
    done = bootstrap.migrate(settings, [spec.store for spec in specs])
    if json:
        as_json({"models": [spec.name for spec in specs], "done": done})
    else:
        out.print("\n".join(done) or "nothing to do: all tables are there", markup=False)
