"""Loading a file into the store: every row is checked first, and a load is visible whole or not at all."""

import csv
import gzip
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from db.sample import SEED, WORLDS, example_world
from db.store import LoadReport, Origin, open_batch
from pipelines.check import Columns, Reject, check
from pipelines.spec import ModelSpec
from utils.errors import DataRefused, NotFound, RowsRefused
from utils.settings import Settings

CHUNK_ROWS = 100_000  # of Parquet
CHUNK_BYTES = 16 << 20  # of CSV
MOST_REJECTS = 1_000  # reading stops there: a file as wrong as that is the wrong file
NOT_GIVEN = "available_at was not given: each row counts as known from its event time on"
NO_TIME = "the data has no time: each row counts as known from the beginning on"

Progress = Callable[[int], None]  # told how many rows have been read


def load_file(
    path: Path, *, spec: ModelSpec, settings: Settings, caused_by: str, now: datetime, progress: Progress | None = None
) -> LoadReport:
    """Load a `.csv`, `.csv.gz` or `.parquet` file as one batch; `now` (UTC) is when its corrections become known.

    Raises: NotFound, MissingColumns, RowsRefused (nothing is loaded then), DataRefused, Unreachable, AccessDenied.
    """
    with readable(path) as (names, chunks):
        columns = Columns.of(names, spec=spec, source=path.name)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        origin = Origin(str(path), digest, caused_by, now, available_at_given=spec.source.available_at is not None)
        return load_rows(chunks(list(columns.taken)), columns, origin, spec=spec, settings=settings, progress=progress)


@contextmanager
def readable(path: Path) -> Iterator[tuple[list[str], "ChunksOf"]]:
    """The names of a file's columns and a function that reads some of them; its errors say which file it was.

    Raises: NotFound, DataRefused.
    """
    if not path.is_file():
        raise NotFound(what=f"file {path}")
    try:
        yield _parquet(path) if path.suffix == ".parquet" else _csv(path)
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error, EOFError, OSError) as error:
        raise DataRefused(f"{path.name}: can't be read as a table: {' '.join(str(error).split())[:200]}") from None


def load_example(*, spec: ModelSpec, settings: Settings, now: datetime, progress: Progress | None = None) -> LoadReport:
    """Load the generated example data of the model, its last rows dated on the day of `now` (UTC).

    Raises: NotFound where the model has no example; Unreachable, AccessDenied.
    """
    world = example_world(spec.name, end=now)
    if world is None:
        raise NotFound(what=f"example data for {spec.name}", hint=f"there is some for {', '.join(WORLDS)}")
    source = f"example world, seed {SEED}"
    digest = hashlib.sha256(pd.util.hash_pandas_object(world, index=False).to_numpy().tobytes()).hexdigest()
    columns = Columns.of(list(world.columns), spec=spec, source=source)
    rows = pa.Table.from_pandas(world[list(columns.taken)], preserve_index=False)
    chunks = iter([pa.Table.from_batches([batch]) for batch in rows.to_batches(CHUNK_ROWS)])
    origin = Origin(source, digest, "evergreen load --example", now)
    return load_rows(chunks, columns, origin, spec=spec, settings=settings, progress=progress)


def load_rows(
    chunks: Iterator[pa.Table],
    columns: Columns,
    origin: Origin,
    *,
    spec: ModelSpec,
    settings: Settings,
    progress: Progress | None,
    empty: bool = False,
) -> LoadReport:
    """Check `chunks`, whose columns are those that `columns` takes, and load them as one batch.

    Raises: RowsRefused (nothing is loaded then); DataRefused, also where there are no rows and `empty` is not allowed.
    """
    started, rows = time.monotonic(), 0
    rejects: list[Reject] = []
    with open_batch(settings, spec.store, origin) as batch:
        for chunk in chunks:
            checked = check(chunk, spec=spec, columns=columns, first_line=rows + 2)
            rows += chunk.num_rows
            rejects += checked.rejects
            if len(rejects) >= MOST_REJECTS:
                break
            if not rejects:  # after a refused row the rest of the file is only checked
                batch.add(features=checked.features, labels=checked.labels)
            if progress:
                progress(rows)
        if rejects:
            raise RowsRefused(source=Path(origin.source).name, rejects=rejects, rows=rows)
        if not rows and not empty:
            raise DataRefused(f"{origin.source}: holds no rows")
        report = batch.commit()
    notes = () if origin.available_at_given else (NOT_GIVEN if spec.timed else NO_TIME,)
    return replace(report, rows=rows, seconds=time.monotonic() - started, notes=notes)


ChunksOf = Callable[[list[str]], Iterator[pa.Table]]  # the rows of a file, of the columns named


def _csv(path: Path) -> tuple[list[str], ChunksOf]:
    """The names in the first line, and the rows as text."""
    opened = gzip.open if path.suffix == ".gz" else Path.open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    if not names:
        raise DataRefused(f"{path.name}: is empty: expected a first line that names the columns")
    if len(set(names)) != len(names):
        raise DataRefused(f"{path.name}: its first line names a column twice: {', '.join(names)[:200]}")

    def chunks(wanted: list[str]) -> Iterator[pa.Table]:
        broken: list[Reject] = []

        def refuse(row: pyarrow.csv.InvalidRow) -> str:  # without the row's text: it may hold private values
            reason = f"its first line has {row.expected_columns}"
            broken.append((row.number or 0, "number of values", str(row.actual_columns), reason))
            return "skip"

        with pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=CHUNK_BYTES, use_threads=False),  # threads lose row numbers
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
            ),
        ) as reader:
            rows = 0
            for batch in reader:
                rows += batch.num_rows
                if broken:
                    raise RowsRefused(source=path.name, rejects=broken, rows=rows + len(broken))
                yield pa.Table.from_batches([batch])

    return names, chunks


def _parquet(path: Path) -> tuple[list[str], ChunksOf]:
    """The names of the columns, and the rows in their own types."""
    with pyarrow.parquet.ParquetFile(path) as file:
        names = list(file.schema_arrow.names)

    def chunks(wanted: list[str]) -> Iterator[pa.Table]:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK_ROWS, columns=wanted):
                yield pa.Table.from_batches([batch])

    return names, chunks
