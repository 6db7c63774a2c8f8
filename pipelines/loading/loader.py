"""Load a file into the store. Every row is checked first. A load becomes visible as a whole or not at all."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import Table

from db.store.appending import open_batch
from db.store.batch import Batch, LoadReport, Origin, Prepared
from pipelines.loading.checking import Checked, check
from pipelines.loading.columns import Columns
from pipelines.loading.files import STDIN, Chunk, readable
from pipelines.loading.rejects import MOST, NONE, MaxRejects, RejectList, rejects_path
from pipelines.spec import ModelSpec
from utils.ahead import ahead
from utils.errors import DataRefused, RowsRefused
from utils.settings import Settings

NOT_GIVEN = "available_at was not given: each row counts as known from its event time on"
NO_TIME = "the data has no time: each row counts as known from the beginning on"

Part = tuple[Chunk, Checked, Mapping[Table, Prepared]]  # a chunk, its checked rows, and these rows ready for the store
Progress = Callable[[int, float | None], None]  # called with the rows read so far and their share of the file


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a load.

    max_rejects: the number or share of rows that may be rejected.
    dry_run: check the rows without loading them.
    encoding: of a CSV file. None: the encoding of its byte order mark, else UTF-8.
    """

    max_rejects: MaxRejects = NONE
    dry_run: bool = False
    encoding: str | None = None


STRICT = Options()


def overlaid(
    spec: ModelSpec, *, names: Mapping[str, str], event_time: str | None = None, available_at: str | None = None
) -> ModelSpec:
    """Return `spec` with the column names of one file.

    `names` override `source.map`. `event_time` and `available_at` replace the keys of `source`.
    Raises: SpecInvalid; DataRefused if `event_time` is set for data without time.
    """
    if event_time and not spec.timed:
        raise DataRefused(f"{spec.name}: its tables were made for data without time: set source.event_time in its file")
    content = spec.to_json()
    source = content.get("source", {})
    renamed = {**source.get("map", {}), **names}
    times = {"event_time": event_time, "available_at": available_at}
    source = {**source, "map": renamed, **{key: renamed.get(name, name) for key, name in times.items() if name}}
    return ModelSpec.parse({**content, "source": source}, file=f"{spec.name}.yaml with the options of this load")


def load_file(
    path: Path,
    *,
    spec: ModelSpec,
    settings: Settings,
    caused_by: str,
    now: datetime,
    options: Options = STRICT,
    progress: Progress | None = None,
) -> LoadReport:
    """Load a `.csv`, `.csv.gz` or `.parquet` file, or CSV from standard input (`-`), as one batch.

    `now` (UTC) is the availability time of its corrections.
    Raises: NotFound, MissingColumns, RowsRefused (nothing is loaded then), DataRefused, Unreachable, AccessDenied.
    """
    source = "standard input" if path == STDIN else str(path)
    with readable(path, encoding=options.encoding) as file:
        columns = Columns.of(file.names, spec=spec, source=Path(source).name)
        origin = _origin(source, spec, caused_by=caused_by, now=now, options=options)
        return load_rows(
            file.chunks(list(columns.taken)),
            columns,
            origin,
            spec=spec,
            settings=settings,
            progress=progress,
            max_rejects=options.max_rejects,
            sha256=file.sha256,
        )


def load_rows(
    chunks: Iterator[Chunk],
    columns: Columns,
    origin: Origin,
    *,
    spec: ModelSpec,
    settings: Settings,
    progress: Progress | None,
    empty: bool = False,
    max_rejects: MaxRejects = NONE,
    sha256: Callable[[], str] | None = None,
) -> LoadReport:
    """Check `chunks`, which have the columns of `columns.taken`, and load their valid rows as one batch.

    `sha256` returns the hash of the content after the last row, if `origin` does not have the hash.
    Raises: RowsRefused (nothing is loaded then); DataRefused, also if there are no rows and `empty` is False.
    """
    started = time.monotonic()
    path = rejects_path(settings, model=spec.name, source=origin.source)
    with open_batch(settings, spec.store, origin) as batch, RejectList(path) as rejects:
        with closing(ahead(_check_chunks(chunks, columns, batch, spec=spec))) as parts:
            rows = _rows_read(parts, batch, rejects, max_rejects=max_rejects, progress=progress)
        batch.record(rejects=rejects.count, **({"content_sha256": sha256()} if sha256 else {}))
        if rejects.first and max_rejects.exceeded(rejects.count, rows=rows):
            raise RowsRefused(
                source=columns.source,
                refused=rejects.count,
                rows=rows,
                first=rejects.first,
                allowed=str(max_rejects) if max_rejects != NONE else "",
                file=path,
            )
        if not rows and not empty:
            raise DataRefused(f"{origin.source}: holds no rows")
        report = batch.commit()
    return replace(
        report,
        rows=rows,
        rejects=rejects.count,
        reasons=rejects.reasons,
        rejects_file=path if rejects.count else None,
        seconds=time.monotonic() - started,
        notes=_notes(spec),
    )


def _rows_read(
    parts: Iterable[Part], batch: Batch, rejects: RejectList, *, max_rejects: MaxRejects, progress: Progress | None
) -> int:
    """Add the valid rows of `parts` to `batch` and the others to `rejects`. Return the number of all rows.

    Once there are too many rejects, no more rows are added. Reading stops at `MOST` rejects.
    """
    rows = 0
    for chunk, checked, prepared in parts:
        rows += chunk.rows.num_rows + len(chunk.broken)
        rejects.add([*chunk.broken, *checked.rejects])
        over_limit = max_rejects.hopeless(rejects.count, rows=rows)
        if over_limit and rejects.count >= MOST:
            break
        if not over_limit:  # otherwise the rest of the file is only checked
            batch.add(prepared)
        if progress:
            progress(rows, chunk.share)
    return rows


def _origin(source: str, spec: ModelSpec, *, caused_by: str, now: datetime, options: Options) -> Origin:
    has_availability = spec.source.available_column is not None
    return Origin(source, "", caused_by, now, available_at_given=has_availability, dry_run=options.dry_run)


def _notes(spec: ModelSpec) -> tuple[str, ...]:
    if spec.source.available_at:
        return ()
    return (NOT_GIVEN if spec.timed else NO_TIME,)


def _check_chunks(chunks: Iterator[Chunk], columns: Columns, batch: Batch, *, spec: ModelSpec) -> Iterator[Part]:
    for chunk in chunks:
        checked = check(chunk.rows, spec=spec, columns=columns, lines=chunk.lines)
        yield chunk, checked, batch.prepare(features=checked.features, labels=checked.labels)
