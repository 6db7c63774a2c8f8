"""The command `evergreen forget`: it deletes an entity everywhere."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.data import RowProgress
from cli.output import Json, as_json, out
from utils.clock import utc_now
from utils.settings import load_settings

WHERE = {
    "features": "feature rows",
    "labels": "labels",
    "latest": "rows of the online store",
    "predictions": "logged predictions",
    "feedback": "reports of the truth about them",
    "dead_letters": "predictions that MariaDB would not log",
    "results": "rows in tables of evergreen_results",
    "snapshots": "rows in snapshots",
    "rejects": "lists of refused rows",
}


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(forget)


def forget(
    model: Annotated[str, typer.Argument(help="Name of a model: a file in models/ without its ending.")],
    entity_id: Annotated[str, typer.Argument(help="The entity, as its files and requests name it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: Json = False,
) -> None:
    """Delete every row of an entity: in the store, the log, results, snapshots and files of refused rows.

    Loads leave out its rows from then on, where they are about the time before. It can't be undone; where it was
    interrupted, the same command finishes it. docs/privacy.md says what else may hold traces.

    Examples:

        evergreen forget churn C-1042 --dry-run

        evergreen forget churn C-1042
    """
    from pipelines.maintenance.forget import forget as forget_entity
    from pipelines.spec import find_spec

    settings = load_settings()
    spec = find_spec(settings.models_dir, model)
    if not (dry_run or yes):
        typer.confirm(f"Delete every row of this {spec.entity} of {model}? It can't be undone.", abort=True, err=True)
    with RowProgress("rows of the log looked at", quiet=json) as progress:
        report = forget_entity(
            settings,
            spec=spec,
            entity_id=entity_id,
            caused_by="evergreen forget",
            now=utc_now(),
            dry_run=dry_run,
            progress=progress,
        )
    if json:
        content = asdict(report)
        content["found"] = content.pop("row_counts")
        return as_json(content)
    counts = [f"{count:,} {WHERE[place]}" for place, count in report.row_counts.items() if count]
    verb = "would be deleted" if dry_run else "deleted"
    if not counts:
        return out.print("no row of it was found" + ("" if dry_run else "; later loads leave out old ones"))
    return out.print(f"{verb}: {', '.join(counts)}", soft_wrap=True, markup=False)
