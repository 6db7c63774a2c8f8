"""Appending to the store: a load is one batch, visible whole or not at all.

Rows enter a temporary table first (`db.staging`); there they are compared with what the store already says, and only
what is new is added. Loads of one model take turns under a lock of the server, which gives it up when the loader dies:
whoever holds the lock knows that every other open batch of the model is dead, and removes its rows. Rows of forgotten
entities (`db.forget`) are left out.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
from sqlalchemy import Connection, Table, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from db import online
from db.forget import leave_out, tombstones
from db.schema import TIMELESS, StoreSchema
from db.session import engine, explained, session
from db.staging import Prepared, Stage, prepare
from db.store_tables import load_lock, store_tables
from db.tables import load_batch
from utils.errors import StackError
from utils.settings import Settings

TURN_SECONDS = 3600  # how long a load waits for another one of the same model
DELETE_ROWS = 50_000  # rows of a dead batch that one transaction removes


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did. `rows` were read; the other counts are rows of the features and the labels table together.

    `forgotten` rows were left out, for their entity was forgotten.
    `batch_id` and `commit_seq` are None where nothing was new: such a load leaves no trace in the database.
    """

    model: str
    source: str
    rows: int = 0
    features_added: int = 0
    labels_added: int = 0
    unchanged: int = 0
    corrections: int = 0
    rejects: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)  # refused rows by column and reason
    rejects_file: Path | None = None
    dry_run: bool = False
    forgotten: int = 0
    seconds: float = 0.0
    batch_id: int | None = None
    commit_seq: int | None = None
    notes: tuple[str, ...] = ()


def latest_commit_seq(settings: Settings, model: str) -> int:
    """The number of the newest load of `model` that is visible; 0 before the first."""
    newest = select(func.coalesce(func.max(load_batch.c.commit_seq), 0)).where(load_batch.c.model == model)
    with session(settings, "pipeline") as connection:
        return int(connection.scalar(newest) or 0)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a load come from. `now` is the moment from which its corrections are known (UTC).

    `available_at_given`: the rows carry their own times of availability; otherwise they hold when a new row was known.
    `dry_run`: rows are compared with the store, and none is added.
    """

    source: str
    content_sha256: str
    caused_by: str
    now: datetime
    available_at_given: bool = False
    rejects: int = 0
    dry_run: bool = False


class Batch:
    """An open load. `add` may be called many times; nothing is visible before `open_batch` ends well."""

    def __init__(self, connection: Connection, schema: StoreSchema, origin: Origin, folder: Path) -> None:
        self._connection, self._schema, self._origin, self._folder = connection, schema, origin, folder
        self._tables = store_tables(schema)
        # Whoever forgets an entity now waits for this load's turn to end, and deletes what it brought.
        self._tombstones = tombstones(connection, schema.model)
        self._stages: dict[Table, Stage] = {}
        self._report = LoadReport(schema.model, origin.source, rejects=origin.rejects, dry_run=origin.dry_run)

    def prepare(self, *, features: pa.Table | None = None, labels: pa.Table | None = None) -> dict[Table, Prepared]:
        """Rows for `add`, with the columns entity_id, event_time, available_at and those of the schema.

        It does not touch the database, so the next rows can be prepared in a second thread while some are added.
        """
        prepared = {}
        for table, rows in ((self._tables.features, features), (self._tables.labels, labels)):
            if rows is not None and rows.num_rows:
                stays, left_out = leave_out(self._tombstones, self._schema.model, rows)
                prepared[table] = prepare(table, stays, self._folder, left_out=left_out)
        return prepared

    def add(self, prepared: Mapping[Table, Prepared]) -> None:
        """Append rows in one transaction.

        (entity_id, event_time, available_at) is unique in each table. A row is left out where the store says the same;
        where it says something else the row is a correction, available from the load on unless its time was given.
        Raises: DataRefused where a row contradicts one of this load, or one with the same given time of availability.
        """
        report = replace(self._report, rows=self._report.rows + max((p.count for p in prepared.values()), default=0))
        for table, rows in prepared.items():
            added, same, changed = self._append(table, rows)
            counted = "features_added" if table is self._tables.features else "labels_added"
            report = _plus(report, unchanged=same, corrections=changed, forgotten=rows.left_out, **{counted: added})
        self._connection.commit()
        self._report = replace(report, batch_id=self._report.batch_id)

    def _append(self, target: Table, rows: Prepared) -> tuple[int, int, int]:
        given, batch_id = self._origin.available_at_given, self._report.batch_id
        if target not in self._stages:
            self._stages[target] = Stage(self._connection, target)
        stage = self._stages[target]
        stage.load(rows)
        same, changed = stage.compare(given=given, batch_id=batch_id, source=self._origin.source)
        if same == rows.count or self._origin.dry_run:
            return rows.count - same, same, changed
        added = stage.insert(batch_id=batch_id or self._open(), now=self._origin.now, given=given)
        return added, same, changed

    def _open(self) -> int:
        """Record the batch, at its first new row."""
        origin = self._origin
        opened = insert(load_batch).values(
            model=self._schema.model,
            source=origin.source[-500:],
            content_sha256=origin.content_sha256,
            rejects=origin.rejects,
            state="open",
            caused_by=origin.caused_by,
            opened_at=origin.now,
        )
        batch_id = int(self._connection.execute(opened).lastrowid)
        self._report = replace(self._report, batch_id=batch_id)
        return batch_id

    def record(self, **found: object) -> None:
        """Write down what is known at the end only: `rejects`, `content_sha256`."""
        self._connection.execute(
            update(load_batch).where(load_batch.c.batch_id == self._report.batch_id).values(**found)
        )
        self._connection.commit()

    def commit(self) -> LoadReport:
        """Make the batch visible, the online store with it; where nothing was new there is nothing to do."""
        report, model = self._report, self._schema.model
        if report.batch_id is None:
            return report
        if report.features_added:
            online.refresh(self._connection, self._tables, report.batch_id)
        newest = select(func.coalesce(func.max(load_batch.c.commit_seq), 0)).where(load_batch.c.model == model)
        report = replace(report, commit_seq=int(self._connection.scalar(newest) or 0) + 1)
        self._connection.execute(
            update(load_batch)
            .where(load_batch.c.batch_id == report.batch_id)
            .values(
                state="committed",
                commit_seq=report.commit_seq,
                feature_rows=report.features_added,
                label_rows=report.labels_added,
                unchanged_rows=report.unchanged,
                committed_at=self._origin.now,
            )
        )
        self._connection.commit()
        return report


@contextmanager
def open_batch(settings: Settings, schema: StoreSchema, origin: Origin) -> Iterator[Batch]:
    """A batch to `add` to and to `commit` at the end; what was added without a commit is removed again.

    Raises: StackError where another load of the model keeps its turn for an hour; Unreachable, AccessDenied.
    """
    bound = engine(settings, "loader", local_infile=True)
    try:
        # Read committed: comparing with the store must not lock its rows.
        with bound.connect().execution_options(isolation_level="READ COMMITTED") as connection:
            lock = {"name": load_lock(schema.model), "seconds": TURN_SECONDS}
            if connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), lock) != 1:
                raise StackError(f"{schema.model}: another load has been running for an hour: try again after it")
            try:
                _remove_dead(connection, schema, lock)
                with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
                    yield Batch(connection, schema, origin, Path(folder))
            finally:
                with suppress(DBAPIError):  # the server is gone: the next load removes what is left
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
    """Load frames as one batch; `now` (UTC) is when its corrections become known.

    Columns: entity_id, event_time (not for data without time), available_at (only where it is given), and the
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
    """Remove what killed loads of the model left behind; returns how many they were.

    None where a load is under way: it did so itself before its first row. Raises: Unreachable, AccessDenied.
    """
    bound, lock = engine(settings, "maintenance"), {"name": f"evergreen_load_{schema.model}", "seconds": 0}
    try:
        with bound.connect().execution_options(isolation_level="READ COMMITTED") as connection:
            if connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), lock) != 1:
                return None
            return _remove_dead(connection, schema, lock)
    except DBAPIError as error:
        raise explained(error, settings=settings, role="maintenance") from error
    finally:
        bound.dispose()  # the session ends, and its turn with it


def _remove_dead(connection: Connection, schema: StoreSchema, lock: Mapping[str, object]) -> int:
    """Remove the rows of open batches and mark them abandoned; the caller's turn proves that nobody works on them."""
    tables = store_tables(schema)
    if not connection.scalar(text("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()"), lock):
        return 0  # reconnected: it may be somebody else's turn
    unfinished = select(load_batch.c.batch_id).where(load_batch.c.model == schema.model, load_batch.c.state == "open")
    batches = connection.scalars(unfinished).all()
    for batch_id in batches:
        for table in (tables.features, tables.labels):
            some = table.delete().where(table.c.batch_id == batch_id).with_dialect_options(mariadb_limit=DELETE_ROWS)
            while connection.execute(some).rowcount:
                connection.commit()
        connection.execute(update(load_batch).where(load_batch.c.batch_id == batch_id).values(state="abandoned"))
    connection.commit()
    return len(batches)


def _plus(report: LoadReport, **counts: int) -> LoadReport:
    return replace(report, **{name: getattr(report, name) + count for name, count in counts.items()})
