"""Make partitions ahead of time and drop old ones, without blocking inserts.

A change of partitions waits for every open reader of the table, and every insert waits behind it. A plain ALTER TABLE
waits twice. So the table is locked first. Each try waits at most `WAIT` seconds. If a reader is open, the try ends,
inserts continue, and the next try follows after a pause. Under the lock the change takes milliseconds, because
partitions are made before rows need them and `p_later` is empty. Each drop is recorded in `retention` first.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import DBAPIError

from db.partitions import (
    LATER,
    Cut,
    day_cuts,
    first_id_of,
    id_bound,
    moment_of,
    month_cuts,
    months,
    split_later,
    time_bound,
)
from db.session import engine, explained, session
from db.store.schema import StoreSchema
from db.tables import prediction_feedback, retention
from utils.errors import HeldBack
from utils.settings import PLATFORM_DB, STORE_DB, Role, Settings

DAYS_AHEAD, MONTHS_AHEAD = 14, 3
WAIT = 1  # seconds that a try for the lock may block inserts
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 60.0)  # seconds between two tries
# Seconds to wait for another change of partitions. Two changes at once would block inserts twice as long.
TURN_SECONDS = 600
LOCK_TIMEOUT = 1205
MOVABLE = 10_000  # rows of p_later that may be moved while inserts wait, in under a second (docs/maintenance.md)
DELETED_AT_ONCE = 5_000  # rows of one transaction


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table with a partition for each day of the UUIDv7 in `column`, or for each month of the time in `column`."""

    database: str
    name: str
    column: str
    daily: bool
    model: str | None = None

    def wanted(self, after: datetime, *, oldest: date, today: date) -> list[Cut]:
        if self.daily:
            return day_cuts(after, first=oldest, last=today + timedelta(days=DAYS_AHEAD))
        return month_cuts(after, first=oldest, last=months(today, back=0, ahead=MONTHS_AHEAD)[-1])

    def bound(self, cut: Cut) -> str:
        return id_bound(cut.before) if self.daily else time_bound(cut.before)

    def moment(self, bound: str) -> datetime:
        return moment_of(UUID(bound)) if self.daily else datetime.fromisoformat(bound)


PREDICTIONS = Partitioned(PLATFORM_DB, "prediction_log", "prediction_id", daily=True)


def store_partitions(schema: StoreSchema) -> list[Partitioned]:
    """Return the features and the labels table of a model, or [] for data without time."""
    names = (schema.features_table, schema.labels_table) if schema.timed else ()
    return [Partitioned(STORE_DB, name, "event_time", daily=False, model=schema.model) for name in names]


def cuts(connection: Connection, table: Partitioned) -> list[Cut]:
    """Return the partitions of `table` in order, without `p_later`, or [] for a table without partitions."""
    rows = connection.execute(
        text(
            "SELECT partition_name AS name, partition_description AS bound FROM information_schema.partitions"
            " WHERE table_schema = :database AND table_name = :name AND partition_name <> :later"
            " ORDER BY partition_ordinal_position"
        ),
        {"database": table.database, "name": table.name, "later": LATER},
    )
    return [Cut(row.name, table.moment(row.bound.strip("'"))) for row in rows]


def add_partitions(
    settings: Settings,
    table: Partitioned,
    *,
    today: date,
    role: Role = "maintenance",
    most: int | None = MOVABLE,
    pauses: Sequence[float] = PAUSES,
    dry_run: bool = False,
) -> list[str]:
    """Make the partitions up to 14 days, or 3 months, after `today` (UTC). Return the names of the new partitions.

    Rows in `p_later` move to the partition of their time. Each day or month from the oldest such row on gets one.
    Raises: HeldBack: `p_later` has more than `most` rows, and moving them would block inserts, or a reader kept the
    table open during all tries. Partitions made before the error stay.
    """
    with _exclusive(settings, table, role) as connection:
        present = cuts(connection, table)
        if not present:
            return []
        oldest = min(today, _oldest_later(connection, table) or today)
        missing = table.wanted(present[-1].before, oldest=oldest, today=today)
        for cut in missing if not dry_run else ():
            with _locked(connection, table, pauses):
                _check_movable(connection, table, most)
                connection.execute(text(f"ALTER TABLE {table.name} {split_later(cut.name, table.bound(cut))}"))
    return [cut.name for cut in missing]


def drop_partitions(
    settings: Settings,
    table: Partitioned,
    *,
    before: datetime,
    caused_by: str,
    now: datetime,
    pauses: Sequence[float] = PAUSES,
    dry_run: bool = False,
) -> list[str]:
    """Drop the partitions of `table` whose rows are all earlier than `before` (UTC), oldest first. Return their names.

    Each drop is recorded in `retention` first. Raises: HeldBack: a reader kept the table open during all tries.
    """
    with _exclusive(settings, table, "maintenance") as connection:
        old = [cut for cut in cuts(connection, table) if cut.before <= before]
        for cut in old if not dry_run else ():
            with _locked(connection, table, pauses):
                _record(settings, table, cut, caused_by=caused_by, now=now)
                connection.execute(text(f"ALTER TABLE {table.name} DROP PARTITION {cut.name}"))
    return [cut.name for cut in old]


def delete_feedback(settings: Settings, *, before: datetime) -> int:
    """Delete the feedback on predictions made before `before` (UTC), in short transactions. Return the row count."""
    old = prediction_feedback.delete().where(text("prediction_id < :bound").bindparams(bound=str(first_id_of(before))))
    chunk, deleted = old.with_dialect_options(mariadb_limit=DELETED_AT_ONCE), 0
    while True:
        with session(settings, "maintenance") as connection:
            count = connection.execute(chunk).rowcount
        deleted += count
        if count < DELETED_AT_ONCE:
            return deleted


@contextmanager
def _exclusive(settings: Settings, table: Partitioned, role: Role) -> Iterator[Connection]:
    """Provide a connection with the lock for changes of partitions. Raises: HeldBack, Unreachable, AccessDenied."""
    bound = engine(settings, role, table.database)
    try:
        with bound.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            locked = connection.scalar(text(f"SELECT GET_LOCK('evergreen_partitions', {TURN_SECONDS})"))
            if locked != 1:
                raise HeldBack(what=f"the partitions of {table.name}", reason="others are being changed all the time")
            connection.execute(text(f"SET SESSION lock_wait_timeout = {WAIT}"))
            yield connection
    except DBAPIError as error:
        raise explained(error, settings=settings, role=role) from error
    finally:
        bound.dispose()  # ends the session and its locks


@contextmanager
def _locked(connection: Connection, table: Partitioned, pauses: Sequence[float]) -> Iterator[None]:
    """Lock the table for the block. Raises: HeldBack: no try got the lock within `WAIT` seconds."""
    for pause in (*pauses, None):
        try:
            connection.execute(text(f"LOCK TABLES {table.name} WRITE"))
            break
        except DBAPIError as error:
            if error.orig is None or error.orig.args[0] != LOCK_TIMEOUT:
                raise
            if pause is None:
                reason = f"a reader kept the table open over {len(pauses) + 1} tries; the next run tries again"
                raise HeldBack(what=f"the partitions of {table.name}", reason=reason) from None
        time.sleep(pause)
    try:
        yield
    finally:
        connection.execute(text("UNLOCK TABLES"))


def _check_movable(connection: Connection, table: Partitioned, most: int | None) -> None:
    rows_query = f"SELECT 1 FROM {table.name} PARTITION ({LATER}) LIMIT {(most or 0) + 1}"  # noqa: S608 - our own names
    if most is not None and int(connection.scalar(text(f"SELECT COUNT(*) FROM ({rows_query}) rows_later")) or 0) > most:  # noqa: S608
        raise HeldBack(
            what=f"the partitions of {table.name}",
            reason=f"more than {most:,} rows are in {LATER}, and sorting them in keeps inserts waiting meanwhile: "
            "run `evergreen maintain partitions --hold-inserts` at a quiet hour",
        )


def _oldest_later(connection: Connection, table: Partitioned) -> date | None:
    """Return the day of the oldest row in `p_later`, or None if it is empty."""
    oldest = connection.scalar(text(f"SELECT MIN({table.column}) FROM {table.name} PARTITION ({LATER})"))  # noqa: S608
    return None if oldest is None else table.moment(str(oldest)).date()


def _record(settings: Settings, table: Partitioned, cut: Cut, *, caused_by: str, now: datetime) -> None:
    """Record a drop before it happens. If the drop fails, the extra row only makes `verify` read the file."""
    same = select(retention.c.id).where(
        retention.c.table_name == table.name,
        retention.c.dropped_before == cut.before,
        retention.c.dropped_at == now,
    )
    row = {"table_name": table.name, "model": table.model, "dropped_before": cut.before}
    with session(settings, "maintenance") as connection:
        if connection.execute(same).first() is None:
            connection.execute(insert(retention).values(**row, caused_by=caused_by, dropped_at=now))
