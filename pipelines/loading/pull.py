"""Pull: load the new rows of the model file's query (`source.query`) as a batch, with the same checks as for a file."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta

import pyarrow as pa
from sqlalchemy import CursorResult, Engine, create_engine, func, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError

from db.session import AWAY, DENIED, engine, session
from db.store.batch import LoadReport, Origin
from db.tables import load_batch
from pipelines.loading.columns import Columns
from pipelines.loading.files import CHUNK_ROWS, numbered
from pipelines.loading.loader import Progress, load_rows
from pipelines.spec import ModelSpec
from utils.errors import AccessDenied, DataRefused, Unreachable
from utils.settings import Settings

SINCE = re.compile(r"(?<![:\w]):since\b")
# A row may be committed after a query that ran while the row was written. So the next query looks back a little. Rows
# that the store has already are not added again.
OVERLAP = timedelta(hours=1)
BEGINNING = datetime(1970, 1, 1)


def pull(
    settings: Settings,
    *,
    spec: ModelSpec,
    caused_by: str,
    now: datetime,
    address: str | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Run the model's query and load its rows as one batch.

    `now` (UTC) is the availability time of corrections. `:since` in the query is the start of the last pull with new
    rows, less an hour, or 1970 before the first pull. The query runs as `evergreen_loader` on the MariaDB of the
    settings, or at the database URL `address`. In both cases it is read-only.

    Raises: DataRefused if there is no query, it fails, or its rows are unusable; MissingColumns, RowsRefused,
    Unreachable, AccessDenied.
    """
    query = spec.source.query
    if not query:
        raise DataRefused(f"{spec.name}: its model file has no source.query")
    if spec.source.connection and not address:
        raise DataRefused(
            f"{spec.name}: its rows come over Airflow's connection {spec.source.connection!r}: only its training DAG "
            "pulls them (evergreen train MODEL --airflow)"
        )
    source = f"query over {spec.source.connection}" if spec.source.connection else "query"
    since = last_pull(settings, spec.name, source=source) - OVERLAP
    database = _engine(settings, address)
    try:
        with database.connect() as connection:
            if connection.dialect.name in {"mysql", "mariadb"}:
                connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
                connection.rollback()
            statement = text(query).bindparams(since=since) if SINCE.search(query) else text(query)
            with closing(connection.execution_options(yield_per=CHUNK_ROWS).execute(statement)) as rows:
                columns = Columns.of(list(rows.keys()), spec=spec, source=source)
                digest = hashlib.sha256(f"{query}\0{since}".encode()).hexdigest()
                has_availability = spec.source.available_column is not None
                origin = Origin(source, digest, caused_by, now, available_at_given=has_availability)
                chunks = numbered(_chunks(rows, columns, settings=settings, spec=spec))
                return load_rows(chunks, columns, origin, spec=spec, settings=settings, progress=progress, empty=True)
    except SQLAlchemyError as error:
        raise _project_error(error, settings=settings, spec=spec) from None
    finally:
        database.dispose()


def last_pull(settings: Settings, model: str, *, source: str) -> datetime:
    """The start (UTC) of the last pull with new rows. One hour after the start of 1970 before the first pull."""
    committed = (load_batch.c.model == model) & (load_batch.c.source == source) & (load_batch.c.state == "committed")
    with session(settings, "loader") as connection:
        opened_at: datetime | None = connection.scalar(select(func.max(load_batch.c.opened_at)).where(committed))
    return opened_at or BEGINNING + OVERLAP


def _engine(settings: Settings, address: str | None) -> Engine:
    if address is None:
        return engine(settings, "loader")
    url = make_url(address)
    return create_engine(url.set(drivername="mysql+pymysql") if url.drivername == "mysql" else url)


def _chunks(rows: CursorResult[object], columns: Columns, *, settings: Settings, spec: ModelSpec) -> Iterator[pa.Table]:
    """Yield the columns of `rows` that the load reads, in the types of the database."""
    places = [list(rows.keys()).index(name) for name in columns.taken]
    try:
        for part in rows.partitions(CHUNK_ROWS):
            values = [[row[place] for row in part] for place in places]
            yield pa.table([pa.array(column) for column in values], names=list(columns.taken))
    except SQLAlchemyError as error:
        raise _project_error(error, settings=settings, spec=spec) from None
    except pa.ArrowException as error:
        raise DataRefused(f"{spec.name}: source.query: {' '.join(str(error).split())[:200]}") from None


def _project_error(error: SQLAlchemyError, *, settings: Settings, spec: ModelSpec) -> Exception:
    """Return the project's error, without the address, which may hold a password."""
    arguments = getattr(getattr(error, "orig", None), "args", ())
    code = arguments[0] if arguments else None
    reason = " ".join(str(arguments[-1] if arguments else error).split())[:300]
    own_database = spec.source.connection is None
    place = settings.mariadb_address if own_database else f"connection {spec.source.connection}"
    if code in AWAY:
        return Unreachable(service="the database of source.query", address=place, reason=reason.split("(")[0].strip())
    if code in DENIED:
        user = settings.db_user("loader") if own_database else "of the connection"
        return AccessDenied(service="the database of source.query", address=place, user=user, reason=reason)
    return DataRefused(f"{spec.name}: source.query fails: {reason}")
