"""`evergreen score`: predictions for many rows at once."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.data import Shown
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
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a sentence.")] = False,
) -> None:
    """Score many rows by the version that serves: all of them, or none where one breaks the model file's rules.

    Every prediction is in the table `prediction_log` with its version, and with `--out` in a file too, by its
    prediction_id. Rows need the entity and the features; a time only where an entity comes more than once.

    Examples:

        evergreen score credit_score customers.csv --out scores.csv

        evergreen score credit_score --query "SELECT * FROM credit_score_latest" --out scores.parquet
    """
    if bool(file) == bool(query):
        raise typer.BadParameter("give either a file or --query")
    from pipelines.score import score_source, serving
    from pipelines.score_files import file_source, query_source, writer_of
    from pipelines.spec import find_spec

    settings, now = load_settings(), utc_now()
    find_spec(settings.models_dir, model)
    if results:
        writer_of(results)  # before anything takes long
    by = serving(settings, model)
    spec = by.bundle.spec
    opened = (
        file_source(file, spec=spec) if file else nullcontext(query_source(str(query), spec=spec, settings=settings))
    )
    with opened as source, Shown(source.name, quiet=json) as shown:
        done = score_source(source, by=by, settings=settings, now=now, out=results, progress=shown)
    if json:
        return as_json(asdict(done))
    pace = done.rows / max(done.seconds, 1e-9)
    out.print(f"{done.rows:,} rows scored by version {done.version} in {done.seconds:.1f} s ({pace:,.0f} a second)")
    where = f"in {done.out} and " if done.out else ""
    out.print(f"results are {where}in prediction_log, where instance = '{done.batch}'", soft_wrap=True, markup=False)
    return None
