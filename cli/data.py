"""Commands for data: `evergreen load`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from cli.output import as_json, err, out
from utils.clock import utc_now
from utils.settings import Settings, load_settings

if TYPE_CHECKING:  # these import pandas and Arrow: a second that `--help` need not take
    from db.store import LoadReport
    from pipelines.spec import ModelSpec

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(load)


def load(
    model: Annotated[str, typer.Argument(help="Name of a model file, without .yaml.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Files: .csv, .csv.gz or .parquet.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Load generated example data, ending today.")] = False,
    query: Annotated[bool, typer.Option("--query", help="Load new rows of the model file's source.query.")] = False,
    json: Json = False,
) -> None:
    """Load files of features, labels or both into the store.

    A file is loaded whole or not at all; loading it twice changes nothing; changed rows become corrections.

    Examples: `evergreen load credit_score june.csv july.parquet`, `evergreen load credit_score --example`,
    `evergreen load credit_score --query`
    """
    from pipelines.spec import find_spec

    if [bool(files), example, query].count(True) != 1:
        raise typer.BadParameter("give either files, --example or --query")
    settings = load_settings()
    spec = find_spec(settings.models_dir, model)
    for path in files or (None,):
        report = _load(path, spec=spec, settings=settings, quiet=json, query=query)
        if json:
            as_json(dataclasses.asdict(report))
            continue
        for note in report.notes:
            err.print(f"note: {note}", markup=False, soft_wrap=True)
        out.print(_line(report), markup=False, soft_wrap=True)


def _load(path: Path | None, *, spec: "ModelSpec", settings: Settings, quiet: bool, query: bool) -> "LoadReport":
    """Load the file at `path`; where there is none the rows of the query, or the example."""
    from pipelines.load import load_example, load_file
    from pipelines.pull import pull

    with Shown(path.name if path else "query" if query else "example world", quiet=quiet) as shown:
        if query:
            return pull(settings, spec=spec, caused_by="evergreen load --query", now=utc_now(), progress=shown)
        if path is None:
            return load_example(spec=spec, settings=settings, now=utc_now(), progress=shown)
        return load_file(path, spec=spec, settings=settings, caused_by="evergreen load", now=utc_now(), progress=shown)


def _line(report: "LoadReport") -> str:
    took = f"{report.rows:,} rows in {report.seconds:.1f} s ({report.rows / max(report.seconds, 1e-9):,.0f} a second)"
    if report.commit_seq is None:
        return f"{report.source}: {took}: nothing new, the store already holds them all"
    corrected = f", {report.corrections:,} of them corrections" if report.corrections else ""
    return (
        f"{report.source}: {took}: {report.features_added:,} feature rows and {report.labels_added:,} labels added"
        f"{corrected}; {report.unchanged:,} were there already; load {report.commit_seq} of {report.model}"
    )


class Shown:
    """A line with rows, rows a second and time while a load runs; nothing where there is no terminal."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} rows"))
        rate = TextColumn("{task.fields[rate]}")
        self._bar = Progress(*columns, rate, TimeElapsedColumn(), console=err, transient=True)
        self._bar.disable = quiet or not err.is_terminal
        self._task = self._bar.add_task(name, total=None, rate="")

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, rows: int) -> None:
        elapsed = self._bar.tasks[self._task].elapsed or 0.0
        self._bar.update(self._task, completed=rows, rate=f"{rows / elapsed:,.0f} a second" if elapsed else "")
