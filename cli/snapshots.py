"""The commands `evergreen snapshot list` and `evergreen snapshot verify`."""

import dataclasses
from typing import Annotated

import typer

from cli.output import Json, as_json, as_table, err, out
from utils.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    group = typer.Typer(no_args_is_help=True)
    group.command("list")(list_snapshots)
    group.command()(verify)
    app.add_typer(group, name="snapshot", help="What each training read. Example: `evergreen snapshot list churn`")


def list_snapshots(
    model: Annotated[str, typer.Argument(help="Name of a model file, without .yaml.")],
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    json: Json = False,
) -> None:
    """Show the newest snapshots of a model.

    Example: `evergreen snapshot list credit_score`
    """
    from db.history import trainings
    from db.session import session

    with session(load_settings(), "pipeline") as connection:
        rows = [dict(row) for row in trainings.snapshots(connection, model, limit=limit)]
    if json:
        as_json(rows)
    elif rows:
        columns = ("snapshot_id", "window_end", "commit_seq", "row_count", "redacted_rows", "created_at")
        as_table([{name: row[name] for name in columns} for row in rows], title=f"snapshots of {model}")
    else:
        out.print(f"{model} has no snapshot yet", markup=False)


def verify(
    snapshot_id: Annotated[str, typer.Argument(help="A snapshot's id, as `evergreen snapshot list` shows it.")],
    json: Json = False,
) -> None:
    """Read a snapshot's rows from the store again and compare them with the recorded hash.

    Where retention has dropped rows of the store since, the snapshot's file is checked instead. Exit code 8 where they
    differ.

    Example: `evergreen snapshot verify credit_score-20261121T030000-7-0f3a5c9b1d2e`
    """
    from pipelines.runs.verify import verify_snapshot

    with err.status(f"reading {snapshot_id} again"):
        report = verify_snapshot(snapshot_id, settings=load_settings())
    if json:
        as_json(dataclasses.asdict(report))
        return
    note = f" ({report.note})" if report.note else ""
    where = f"{report.rows:,} rows from the {report.read_from}"
    out.print(f"{snapshot_id}: {where}, as recorded: {report.content_sha256}{note}", markup=False, soft_wrap=True)
