"""The command `evergreen load`."""

import dataclasses
import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from cli.output import as_json, err, out
from utils.clock import utc_now
from utils.errors import NotFound
from utils.settings import Settings, load_settings

if TYPE_CHECKING:  # importing pandas and Arrow takes a second, which would slow down `--help`
    from db.store.batch import LoadReport
    from pipelines.loading.loader import Options
    from pipelines.loading.rejects import MaxRejects
    from pipelines.spec import ModelSpec

FILES_HELP = "Files: .csv, .csv.gz or .parquet; patterns in quotes; - for CSV from standard input."
MAX_REJECTS = "1%"
MAX_REJECTS_HELP = (
    "How many rows may be refused, a number or a share; with more of them nothing is loaded. Few bad rows need not "
    "hold up the good ones; many mean that something is wrong with the file."
)
STDIN = "-"


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(load)


def load(
    model: Annotated[str, typer.Argument(help="Name of a model file, without .yaml.")],
    files: Annotated[list[str] | None, typer.Argument(help=FILES_HELP)] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FILECOL=NAME", help="A column of the files and its name here; repeatable."),
    ] = None,
    event_time: Annotated[str | None, typer.Option(metavar="COL", help="The files' column with event times.")] = None,
    available_at: Annotated[
        str | None,
        typer.Option(metavar="COL|LAG", help="The files' column with the times rows became known, or a lag like +2d."),
    ] = None,
    max_rejects: Annotated[str, typer.Option(metavar="N|P%", help=MAX_REJECTS_HELP)] = MAX_REJECTS,
    encoding: Annotated[
        str | None, typer.Option(help="Of CSV that is neither UTF-8 nor begins with a byte order mark.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen and change nothing.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Load generated example data, ending today.")] = False,
    query: Annotated[bool, typer.Option("--query", help="Load new rows of the model file's source.query.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document a file.")] = False,
) -> None:
    """Load files of features, labels or both into the store.

    A file's good rows are loaded together, or none of them; its bad rows go to a file under rejects/ that says for each
    line what is wrong. Loading a file twice changes nothing; changed rows become corrections.

    Examples: `evergreen load credit_score june.csv 'history/*.parquet'`, `evergreen load credit_score --example`,
    `zcat june.csv.gz | evergreen load credit_score - --map Datum=date --available-at +2d --dry-run`,
    `evergreen load credit_score --query`
    """
    from pipelines.loading.loader import Options, overlaid
    from pipelines.spec import find_spec

    if [bool(files), example, query].count(True) != 1:
        raise typer.BadParameter("give either files, --example or --query")
    if not files and any((names, event_time, available_at, encoding, dry_run, max_rejects != MAX_REJECTS)):
        raise typer.BadParameter("--example and --query take no options that are for files")
    settings = load_settings()
    spec = find_spec(settings.models_dir, model)
    options = Options(max_rejects=_max_rejects(max_rejects), dry_run=dry_run, encoding=encoding)
    if names or event_time or available_at:
        spec = overlaid(spec, names=_pairs(names or []), event_time=event_time, available_at=available_at)
    for path in _expanded(files) if files else [None]:
        report = _load(path, spec=spec, settings=settings, options=options, quiet=json, query=query)
        if json:
            as_json(dataclasses.asdict(report))
        else:
            _show(report)


def _max_rejects(text: str) -> "MaxRejects":
    from pipelines.loading.rejects import MaxRejects

    try:
        return MaxRejects.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"--max-rejects: {error}") from None


def _pairs(options: list[str]) -> dict[str, str]:
    pairs = [option.rpartition("=") for option in options]
    if wrong := [name for old, _, name in pairs if not old or not name]:
        raise typer.BadParameter(f"--map: expected FILECOL=NAME, got {wrong[0]!r}")
    return {old: name for old, _, name in pairs}


def _expanded(files: list[str]) -> list[Path]:
    """Return the files that the arguments name. The files of a pattern are sorted by name."""
    paths: list[Path] = []
    for pattern in files:
        if pattern == STDIN or Path(pattern).exists() or not glob.has_magic(pattern):
            paths.append(Path(pattern))
        elif matches := sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - a pattern may be absolute
            paths += map(Path, matches)
        else:
            raise NotFound(what=f"file that fits {pattern}")
    return paths


def _load(
    path: Path | None, *, spec: "ModelSpec", settings: Settings, options: "Options", quiet: bool, query: bool
) -> "LoadReport":
    """Load the file at `path`. Without a path, load the rows of the query, or the example."""
    from pipelines.loading.loader import load_file
    from pipelines.loading.pull import pull
    from stack.example_data.load_example import load_example

    with RowProgress(path.name if path else "query" if query else "example world", quiet=quiet) as progress:
        if query:
            return pull(settings, spec=spec, caused_by="evergreen load --query", now=utc_now(), progress=progress)
        if path is None:
            return load_example(spec=spec, settings=settings, now=utc_now(), progress=progress)
        return load_file(
            path,
            spec=spec,
            settings=settings,
            caused_by="evergreen load",
            now=utc_now(),
            options=options,
            progress=progress,
        )


def _show(report: "LoadReport") -> None:
    for note in report.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    if report.rejects:
        reasons = "; ".join(f"{count:,} × {reason}" for reason, count in list(report.reasons.items())[:5])
        err.print(
            f"refused: {report.rejects:,} rows ({reasons}): see {report.rejects_file}, correct them and load "
            "them again",
            markup=False,
            soft_wrap=True,
        )
    out.print(_line(report), markup=False, soft_wrap=True)


def _line(report: "LoadReport") -> str:
    pace = f"{report.rows:,} rows in {report.seconds:.1f} s ({report.rows / max(report.seconds, 1e-9):,.0f} a second)"
    corrected = f", {report.corrections:,} of them corrections" if report.corrections else ""
    forgotten = f"; {report.forgotten:,} rows of forgotten entities left out" if report.forgotten else ""
    if report.dry_run:
        return (
            f"{report.source}: {pace}: would add {report.features_added:,} feature rows and {report.labels_added:,} "
            f"labels{corrected}; {report.unchanged:,} are there already{forgotten}; nothing was changed"
        )
    if report.commit_seq is None:
        return f"{report.source}: {pace}: nothing new, the store already holds them all{forgotten}"
    return (
        f"{report.source}: {pace}: {report.features_added:,} feature rows and {report.labels_added:,} labels added"
        f"{corrected}; {report.unchanged:,} were there already{forgotten}; load {report.commit_seq} of {report.model}"
    )


class RowProgress:
    """A line with rows, rows a second, time and time left. It is hidden without a terminal."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} rows"))
        rate, left = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[left]}")
        self._bar = Progress(*columns, rate, TimeElapsedColumn(), left, console=err, transient=True)
        self._bar.disable = quiet or not err.is_terminal
        self._task = self._bar.add_task(name, total=None, rate="", left="")

    def __enter__(self) -> "RowProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, rows: int, share: float | None = None) -> None:
        elapsed = self._bar.tasks[self._task].elapsed or 0.0
        rate = f"{rows / elapsed:,.0f} a second" if elapsed else ""
        self._bar.update(self._task, completed=rows, rate=rate, left=time_left(elapsed, share))


def time_left(elapsed: float, share: float | None) -> str:
    """Return the time left, like `2:05 left`, if `share` of the work took `elapsed` seconds. Empty if it is unknown."""
    if not share or not elapsed:
        return ""
    seconds = round(elapsed * (1 - share) / share)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}:{seconds % 60:02} left" if hours else f"{minutes}:{seconds % 60:02} left"
