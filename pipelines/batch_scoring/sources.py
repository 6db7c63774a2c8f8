"""The input and output of batch scoring: rows from a file or a query, and results in a file or a table."""

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

type Write = Callable[[list[dict[str, Any]]], None]  # writes rows: column of `results_schema` → value

WRITERS: dict[str, Any] = {".csv": pyarrow.csv.CSVWriter, ".parquet": pyarrow.parquet.ParquetWriter}


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to score.

    name: the name of the source in messages.
    spec, columns: the arguments that `check` needs to check the rows.
    chunks: returns the rows in chunks. Can be called more than once.
    """

    name: str
    spec: ModelSpec
    columns: Columns
    chunks: Callable[[], Iterator[Chunk]]

    @classmethod
    def of(
        cls,
        name: str,
        column_names: Sequence[str],
        chunks: Callable[[list[str]], Iterator[Chunk]],
        *,
        spec: ModelSpec,
    ) -> "Source":
        """Build a source from the column names of the rows.

        column_names: all columns that the rows have. The label is not read. The event time is optional, but without it
            each entity may occur only once.
        chunks: returns the rows with only the columns that it is given.

        Raises: MissingColumns.
        """
        model_names = {column: spec.source.map.get(column, column) for column in column_names}
        event_time, time_of_day = (
            column if column in model_names.values() else None
            for column in (spec.source.event_time, spec.source.time_of_day)
        )
        scoring_spec = _with_times(spec, event_time=event_time, time_of_day=time_of_day if event_time else None)
        unlabelled_columns = [column for column in column_names if model_names[column] != spec.label.column]
        columns = Columns.of(unlabelled_columns, spec=scoring_spec, source=name)
        return cls(name, scoring_spec, columns, lambda: chunks(list(columns.taken)))


def file_source(path: Path, *, spec: ModelSpec) -> Source:
    """Return the rows of a `.csv`, `.csv.gz` or `.parquet` file.

    Raises: NotFound, DataRefused, MissingColumns.
    """

    def chunks(columns: list[str]) -> Iterator[Chunk]:
        with readable(path) as file:
            yield from file.chunks(columns)

    with readable(path) as file:
        return Source.of(path.name, file.names, chunks, spec=spec)


def query_source(query: str, *, spec: ModelSpec, settings: Settings) -> Source:
    """Return the rows of a query on `evergreen_store`, which runs as the read-only user.

    The entity and the event time may have the names of the store (`entity_id`, `event_time`) or of the model file.

    Raises: DataRefused, MissingColumns, NotFound, Unreachable, AccessDenied.
    """
    columns, tables = _run_query(query, settings=settings)
    names_in_model = {"entity_id": spec.entity, "event_time": str(spec.source.event_time)}
    renamed = [names_in_model.get(name, name) for name in columns]
    names = [name if new_name in columns else new_name for name, new_name in zip(columns, renamed, strict=True)]
    tables = [table.rename_columns(names) for table in tables]
    if "event_time" in columns:  # the store has the date and the hour in one column, in UTC
        spec = _with_times(spec, event_time=spec.source.event_time, time_of_day=None, time_zone=None)
    return Source.of("query", names, lambda selected: numbered(table.select(selected) for table in tables), spec=spec)


def _with_times(spec: ModelSpec, **times: str | None) -> ModelSpec:
    """Return the spec with other time columns in `source`, and without an availability time."""
    source = spec.source.model_copy(update={"available_at": None, **times})
    return spec.model_copy(update={"source": source})


def _run_query(query: str, *, settings: Settings) -> tuple[list[str], list[pa.Table]]:
    """Return the column names and the rows of a SELECT."""
    try:
        with session(settings, "reader", STORE_DB) as connection:
            streaming = connection.execution_options(stream_results=True)
            # `text` would take the colons of a time for parameters. The driver needs percent signs doubled.
            with streaming.exec_driver_sql(query.replace("%", "%%")) as query_result:
                if not query_result.returns_rows:
                    raise DataRefused("the query gives no rows: expected a SELECT")
                names = list(query_result.keys())
                if len(set(names)) != len(names):
                    raise DataRefused(f"the query names a column twice: {', '.join(names)[:200]}")
                parts = [list(zip(*part, strict=True)) for part in query_result.partitions(CHUNK_ROWS)]
        return names, [pa.table(dict(zip(names, map(pa.array, part), strict=True))) for part in parts]
    except DBAPIError as error:
        reason = error.orig.args[-1] if error.orig and error.orig.args else error
        raise DataRefused(f"the query can't be run: {str(reason)[:200]}") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataRefused(f"the query's rows can't be read as a table: {str(error)[:200]}") from None


@contextmanager
def results_file(out: Path | None, *, spec: ModelSpec, timed: bool) -> Iterator[Write]:
    """Yield a function that writes rows of results to the file `out`. It does nothing if `out` is None.

    The file is replaced at the end of the block. After an error it is unchanged.

    Raises: DataRefused if `out` is not a `.csv` or `.parquet` file; NotFound if its folder does not exist.
    """
    if out is None:
        yield lambda rows: None
        return
    temporary, schema = out.with_name(f".{out.name}"), results_schema(spec, timed=timed)
    try:
        with _open_writer(writer_of(out), temporary, schema) as file:
            yield lambda rows: file.write_table(pa.Table.from_pylist(rows, schema=schema))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def results_table(
    name: str | None, *, spec: ModelSpec, timed: bool, batch: UUID, settings: Settings
) -> Iterator[Write]:
    """Yield a function that adds rows of results to a table of `evergreen_results`. It does nothing if `name` is None.

    The rows are added at the end of the block. After an error no row is added. If the model has an event time, the
    table has one too. It is NULL if `timed` is false, which means that the scored rows had no event time.

    Raises: DataRefused if the name is invalid or the table holds other data; Unreachable, AccessDenied.
    """
    if name is None:
        yield lambda rows: None
        return
    names = results_schema(spec, timed=timed).names
    columns = results_schema(spec, timed=spec.timed)
    with appended(settings, table_name(name), model=spec.name, columns=columns) as append:
        yield lambda rows: append([{"batch_id": batch, **{column: row[column] for column in names}} for row in rows])


def table_name(name: str) -> str:
    """Return `name` if a table of results can have this name.

    Raises: DataRefused.
    """
    if not re.fullmatch(IDENTIFIER, name):
        raise DataRefused(f"{name!r} can't name a table: up to 48 of a-z, 0-9 and _, a letter first")
    return name


def _open_writer(writer: Any, path: Path, schema: pa.Schema) -> Any:
    try:
        return writer(path, schema)
    except OSError as error:
        raise DataRefused(f"{path.parent}: nothing can be written there: {error.strerror}") from None


def writer_of(out: Path) -> Any:
    """Return the PyArrow class that writes files of the format of `out`.

    Raises: DataRefused if `out` is not a `.csv` or `.parquet` file; NotFound if its folder does not exist.
    """
    if out.suffix not in WRITERS:
        raise DataRefused(f"{out.name}: results go to a file that ends in {' or '.join(WRITERS)}")
    if not out.parent.is_dir():
        raise NotFound(what=f"folder {out.parent}")
    return WRITERS[out.suffix]


def results_schema(spec: ModelSpec, *, timed: bool) -> pa.Schema:
    """Return the columns of results. With `timed`, they include the event time of the scored rows."""
    prediction_type = pa.float64() if spec.task == "regression" else pa.string()
    columns: dict[str, pa.DataType] = {
        spec.entity: pa.string(),
        **({str(spec.source.event_time): STAMP} if timed else {}),
        "prediction": prediction_type,
        "confidence": pa.float64(),
        **{f"probability_{name}": pa.float64() for name in spec.label.classes},
        "warnings": pa.string(),
        "version": pa.int64(),
        "predicted_at": STAMP,
        "prediction_id": pa.string(),
    }
    return pa.schema(list(columns.items()))
