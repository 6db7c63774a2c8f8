"""The `evergreen` command: a thin layer over `stack`, `pipelines` and `db`."""

import sys

import typer
from rich.markup import escape

from cli import (
    backup_commands,
    data,
    demo,
    forget_command,
    init,
    keys,
    maintain,
    models,
    replay_command,
    scoring_command,
    shadow_commands,
    simulation,
    snapshots,
    stack_commands,
    tables,
    why,
)
from cli.output import err
from utils.errors import EvergreenError
from utils.version import code_commit, release

app = typer.Typer(
    name="evergreen",
    help="Keeps tabular models fresh.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (
    *(stack_commands, backup_commands, demo, maintain),
    *(init, tables, data, snapshots, forget_command, keys),
    *(models, shadow_commands, replay_command, scoring_command, simulation, why),
):
    part.register(app)


def show_version(flag: bool) -> None:
    """Print the version and the commit, then exit."""
    if flag:
        typer.echo(f"evergreen {release()} ({code_commit()})")
        raise typer.Exit


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Show the version and the commit."
    ),
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command. An `EvergreenError` prints one line to standard error and exits with its own code."""
    try:
        app()
    except EvergreenError as error:
        if "--debug" in sys.argv:
            raise
        err.print(f"[red]evergreen:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
