"""The command `evergreen maintain`: it does the work of the DAG `maintenance` by hand."""

from typing import Annotated

import typer

from cli.output import as_json, as_table, err
from utils.clock import utc_now
from utils.errors import EvergreenError, NotFound
from utils.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(maintain)


def maintain(
    duties: Annotated[
        list[str] | None,
        typer.Argument(help="partitions, predictions, features, batches, snapshots, artifacts; without: all."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    hold_inserts: Annotated[
        bool, typer.Option("--hold-inserts", help="Make partitions even where inserts have to wait for it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make coming partitions, drop what is past its time, and remove what is left behind.

    Airflow does the same once a day (DAG `maintenance`), and cleans its own database there. A duty that fails does not
    stop the others; the command then exits with 1.

    Examples:

        evergreen maintain --dry-run

        evergreen maintain partitions --hold-inserts
    """
    from pipelines.maintenance.duties import DUTIES, Job

    if unknown := [name for name in duties or () if name not in DUTIES]:
        raise NotFound(what=f"duty {unknown[0]!r}", hint=f"there are {', '.join(DUTIES)}")
    job = Job(load_settings(), utc_now(), "evergreen maintain", dry_run=dry_run, hold_inserts=hold_inserts)
    rows = []
    for name in duties or DUTIES:
        with err.status(f"{name} …"):
            try:
                text, failed = DUTIES[name](job), False
            except EvergreenError as error:
                text, failed = str(error), True
        rows.append({"duty": name, "failed": failed, "dry_run" if dry_run else "done": text})
    if json:
        as_json(rows)
    else:
        as_table([{**row, "failed": "yes" if row["failed"] else None} for row in rows])
    if any(row["failed"] for row in rows):
        raise typer.Exit(1)
