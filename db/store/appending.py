"""Append to the store. A load is one batch: all of its rows become visible, or none of them.

Rows enter a temporary table first (`db.store.staging`). There they are compared with the store, and only new rows are
added (`db.store.batch`). Loads of one model hold a lock of the server, so they run one after another. The server
releases the lock when the loader dies. So the lock's holder knows that every other open batch of the model is dead, and
removes its rows. Rows of forgotten entities (`db.tombstones`) are left out.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
from sqlalchemy import Connection, select, text, update
from sqlalchemy.exc import DBAPIError

from db.session import engine, explained
from db.store.batch import ISOLATION, Batch, LoadReport, Origin
from db.store.schema import TIMELESS, StoreSchema
from db.store.store_tables import load_lock, store_tables
from db.tables import load_batch
from utils.errors import StackError
from utils.settings import Settings

TURN_SECONDS = 3600  # seconds that a load waits for another load of the same model
DELETE_ROWS = 50_000  # rows of a dead batch that one transaction deletes


@contextmanager
def open_batch(settings: Settings, schema: StoreSchema, origin: Origin) -> Iterator[Batch]:
    """Provide a batch for `add` and a final `commit`. Without a commit its rows are removed.

    Raises: StackError: another load of the model runs for more than an hour. Unreachable, AccessDenied.
    """
    bound = engine(settings, "loader", local_infile=True)
    try:
        with bound.connect().execution_options(isolation_level=ISOLATION) as connection:
            lock = {"name": load_lock(schema.model), "seconds": TURN_SECONDS}
            if connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), lock) != 1:
                raise StackError(f"{schema.model}: another load has been running for an hour: try again after it")
            try:
                _remove_dead(connection, schema, lock)
                with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
                    batch = Batch(connection, schema, origin, Path(folder))
                    try:
                        yield batch
                    finally:
                        batch.close()
            finally:
                with suppress(DBAPIError):  # the connection is lost: the next load removes the rows
                    connection.rollback()
                    _remove_dead(connection, schema, lock)
                    connection.execute(text("SELECT RELEASE_LOCK(:name)"), lock)
    except DBAPIError as error:
        raise explained(error, settings=settings, role="loader") from error
    finally:
        bound.dispose()


def append(
    settings: Settings,
    schema: StoreSchema,
    *,
    features: pd.DataFrame | None,
    labels: pd.DataFrame | None,
    source: str,
    content_sha256: str,
    caused_by: str,
    now: datetime,
    available_at_given: bool,
    rejects: int = 0,
) -> LoadReport:
    """Load frames as one batch. `now` (UTC) is the availability time of its corrections.

    Columns: entity_id, event_time (not for data without time), available_at (only with `available_at_given`), and the
    schema's features or label. Raises: DataRefused, StackError, Unreachable, AccessDenied.
    """
    started = time.monotonic()
    origin = Origin(source, content_sha256, caused_by, now, available_at_given, rejects)
    with open_batch(settings, schema, origin) as batch:
        batch.add(batch.prepare(features=_arrow(features), labels=_arrow(labels)))
        report = batch.commit()
    return replace(report, seconds=time.monotonic() - started)


def _arrow(frame: pd.DataFrame | None) -> pa.Table | None:
    if frame is None:
        return None
    times = {"event_time": frame.get("event_time", TIMELESS)}
    times["available_at"] = frame.get("available_at", times["event_time"])
    return pa.Table.from_pandas(frame.assign(**times), preserve_index=False)


def remove_dead(settings: Settings, schema: StoreSchema) -> int | None:
    """Remove the rows of killed loads of the model. Return the number of these loads.

    Return None if a load is running. That load removed them before its first row. Raises: Unreachable, AccessDenied.
    """
    bound, lock = engine(settings, "maintenance"), {"name": f"evergreen_load_{schema.model}", "seconds": 0}
    try:
        with bound.connect().execution_options(isolation_level=ISOLATION) as connection:
            if connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), lock) != 1:
                return None
            return _remove_dead(connection, schema, lock)
    except DBAPIError as error:
        raise explained(error, settings=settings, role="maintenance") from error
    finally:
        bound.dispose()  # ends the session and its lock


def _remove_dead(connection: Connection, schema: StoreSchema, lock: Mapping[str, object]) -> int:
    """Remove the rows of open batches and mark the batches abandoned. The caller's lock proves that they are dead."""
    tables = store_tables(schema)
    if not connection.scalar(text("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()"), lock):
        return 0  # reconnected: another load may hold the lock
    unfinished = select(load_batch.c.batch_id).where(load_batch.c.model == schema.model, load_batch.c.state == "open")
    batches = connection.scalars(unfinished).all()
    for batch_id in batches:
        for table in (tables.features, tables.labels):
            chunk = table.delete().where(table.c.batch_id == batch_id).with_dialect_options(mariadb_limit=DELETE_ROWS)
            while connection.execute(chunk).rowcount:
                connection.commit()
        connection.execute(update(load_batch).where(load_batch.c.batch_id == batch_id).values(state="abandoned"))
    connection.commit()
    return len(batches)
