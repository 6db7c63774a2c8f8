"""The command `evergreen score`: it predicts many rows at once."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.data import RowProgress
from cli.output import as_json, out
from utils.clock import utc_now
from utils.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(score)


def score(
    model: Annotated[str, typer.Argument(help="Name of a model: a file in models/ without its ending.")],
    file: Annotated[Path | None, typer.Argument(help="Rows to score: .csv, .csv.gz or .parquet.")] = None,
    query: Annotated[
        str | None, typer.Option(help="Rows to score: a SELECT on the database evergreen_store, in place of a file.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--out", help="A .csv or .parquet file for the results; it is replaced.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(help="A table for the results, in the database evergreen_results; made, or added to."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a sentence.")] = False,
) -> None:
    """Score many rows by the version that serves: all of them, or none where one breaks the model file's rules.

    Every prediction is in the table `prediction_log` with its version; with `--out` in a file too, and with `--table`
    in a table of yours, by its prediction_id. Rows need the entity and the features; a time only where an entity comes
    more than once.

    Examples:

        evergreen score credit_score customers.csv --out scores.csv

        evergreen score credit_score --query "SELECT * FROM credit_score_latest" --table credit_scores
    """
    if bool(file) == bool(query):
        raise typer.BadParameter("give either a file or --query")
    from pipelines.batch_scoring.score import score_rows

    with RowProgress(file.name if file else "query", quiet=json) as progress:
        report = score_rows(
            load_settings(), model, file=file, query=query, out=results, table=table, now=utc_now(), progress=progress
        )
    if json:
        return as_json(asdict(report))
    return out.print(report.summary, soft_wrap=True, markup=False)
