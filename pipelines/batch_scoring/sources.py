"""What batch scoring reads and writes: rows of a file or a query, and the file or table with their results."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from sqlalchemy.exc import DBAPIError

from db.session import session
from db.store.result_tables import appended
from pipelines.loading.columns import Columns
from pipelines.loading.files import CHUNK_ROWS, Chunk, numbered, readable
from pipelines.loading.times import STAMP
from pipelines.spec import IDENTIFIER, ModelSpec
from utils.errors import DataRefused, NotFound
from utils.settings import STORE_DB, Settings

type Write = Callable[[list[dict[str, Any]]], None]  # takes rows with the columns of `results_schema` by their names

WRITERS: dict[str, Any] = {".csv": pyarrow.csv.CSVWriter, ".parquet": pyarrow.parquet.ParquetWriter}


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to score, as often as `chunks` is called. `spec` and `columns` say how `check` takes them."""

    name: str
    spec: ModelSpec
    columns: Columns
    chunks: Callable[[], Iterator[Chunk]]

    @classmethod
    def of(
        cls,
        name: str,
        names: Sequence[str],
        chunks: Callable[[list[str]], Iterator[Chunk]],
        *,
        spec: ModelSpec,
    ) -> "Source":
        """Rows with the columns `names`. A label is not read; a time is needed only where an entity comes twice.

        Raises: MissingColumns.
        """
        renamed = {each: spec.source.map.get(each, each) for each in names}
        date, hour = (
            each if each in renamed.values() else None for each in (spec.source.event_time, spec.source.time_of_day)
        )
        plain = _with_times(spec, event_time=date, time_of_day=hour if date else None)
        unlabelled = [each for each in names if renamed[each] != spec.label.column]
        columns = Columns.of(unlabelled, spec=plain, source=name)
        return cls(name, plain, columns, lambda: chunks(list(columns.taken)))


def file_source(path: Path, *, spec: ModelSpec) -> Source:
    """The rows of a `.csv`, `.csv.gz` or `.parquet` file. Raises: NotFound, DataRefused, MissingColumns."""

    def chunks(wanted: list[str]) -> Iterator[Chunk]:
        with readable(path) as file:
            yield from file.chunks(wanted)

    with readable(path) as file:
        return Source.of(path.name, file.names, chunks, spec=spec)


def query_source(query: str, *, spec: ModelSpec, settings: Settings) -> Source:
    """The rows of a query on `evergreen_store`, run as the user who may only read.

    The store's own names, entity_id and event_time, stand for the model file's.

    Raises: DataRefused, MissingColumns, NotFound, Unreachable, AccessDenied.
    """
    found, tables = _queried(query, settings=settings)
    stored = {"entity_id": spec.entity, "event_time": str(spec.source.event_time)}
    names = [each if stored.get(each, each) in found else stored.get(each, each) for each in found]
    tables = [table.rename_columns(names) for table in tables]
    if "event_time" in found:  # date and hour in one, in UTC
        spec = _with_times(spec, event_time=spec.source.event_time, time_of_day=None, time_zone=None)
    return Source.of("query", names, lambda wanted: numbered(table.select(wanted) for table in tables), spec=spec)


def _with_times(spec: ModelSpec, **times: str | None) -> ModelSpec:
    source = spec.source.model_copy(update={"available_at": None, **times})
    return spec.model_copy(update={"source": source})


def _queried(query: str, *, settings: Settings) -> tuple[list[str], list[pa.Table]]:
    try:
        with session(settings, "reader", STORE_DB) as connection:
            streamed = connection.execution_options(stream_results=True)
            # Not `text`, which would take the colons of a time for parameters; the driver looks at percent signs.
            with streamed.exec_driver_sql(query.replace("%", "%%")) as result:
                if not result.returns_rows:
                    raise DataRefused("the query gives no rows: expected a SELECT")
                names = list(result.keys())
                if len(set(names)) != len(names):
                    raise DataRefused(f"the query names a column twice: {', '.join(names)[:200]}")
                parts = [list(zip(*part, strict=True)) for part in result.partitions(CHUNK_ROWS)]
        return names, [pa.table(dict(zip(names, map(pa.array, part), strict=True))) for part in parts]
    except DBAPIError as error:
        said = error.orig.args[-1] if error.orig and error.orig.args else error
        raise DataRefused(f"the query can't be run: {str(said)[:200]}") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataRefused(f"the query's rows can't be read as a table: {str(error)[:200]}") from None


@contextmanager
def results_file(out: Path | None, *, spec: ModelSpec, timed: bool) -> Iterator[Write]:
    """What writes rows of results to `out`, which is replaced at the end, whole or not at all; without `out` none does.

    Raises: DataRefused where it is no `.csv` or `.parquet` file; NotFound where its folder is none.
    """
    if out is None:
        yield lambda rows: None
        return
    aside, schema = out.with_name(f".{out.name}"), results_schema(spec, timed=timed)
    try:
        with _opened(writer_of(out), aside, schema) as file:
            yield lambda rows: file.write_table(pa.Table.from_pylist(rows, schema=schema))
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def results_table(
    name: str | None, *, spec: ModelSpec, timed: bool, batch: UUID, settings: Settings
) -> Iterator[Write]:
    """What adds rows of results to table `name` of `evergreen_results`, all of them at the end, or none; or nowhere.

    The table has an event time wherever the model has one; it is NULL where what was scored had none (`timed`).

    Raises: DataRefused where the name is none, or the table holds anything else; Unreachable, AccessDenied.
    """
    if name is None:
        yield lambda rows: None
        return
    shown = results_schema(spec, timed=timed).names
    columns = results_schema(spec, timed=spec.timed)
    with appended(settings, table_name(name), model=spec.name, columns=columns) as append:
        yield lambda rows: append([{"batch_id": batch, **{each: row[each] for each in shown}} for row in rows])


def table_name(name: str) -> str:
    """`name`, where a table of results may have it. Raises: DataRefused."""
    if not re.fullmatch(IDENTIFIER, name):
        raise DataRefused(f"{name!r} can't name a table: up to 48 of a-z, 0-9 and _, a letter first")
    return name


def _opened(writer: Any, path: Path, schema: pa.Schema) -> Any:
    try:
        return writer(path, schema)
    except OSError as error:
        raise DataRefused(f"{path.parent}: nothing can be written there: {error.strerror}") from None


def writer_of(out: Path) -> Any:
    """What writes a file of that name.

    Raises: DataRefused where it is no `.csv` or `.parquet` file; NotFound where its folder is none.
    """
    if out.suffix not in WRITERS:
        raise DataRefused(f"{out.name}: results go to a file that ends in {' or '.join(WRITERS)}")
    if not out.parent.is_dir():
        raise NotFound(what=f"folder {out.parent}")
    return WRITERS[out.suffix]


def results_schema(spec: ModelSpec, *, timed: bool) -> pa.Schema:
    """The columns of results; `timed`: with the event time of what was scored."""
    kind = pa.float64() if spec.task == "regression" else pa.string()
    columns: dict[str, pa.DataType] = {
        spec.entity: pa.string(),
        **({str(spec.source.event_time): STAMP} if timed else {}),
        "prediction": kind,
        "confidence": pa.float64(),
        **{f"probability_{name}": pa.float64() for name in spec.label.classes},
        "warnings": pa.string(),
        "version": pa.int64(),
        "predicted_at": STAMP,
        "prediction_id": pa.string(),
    }
    return pa.schema(list(columns.items()))
