"""Partitions made ahead of time and dropped when they are old, without keeping inserts waiting.

A change of partitions waits for every open reader of the table, and every insert queues behind it; a plain ALTER TABLE
waits twice. So the table is locked first, for at most `WAIT` seconds a try: with a reader open that gives up, inserts
go on, and it is tried again after a pause. Under the lock the change itself takes milliseconds, for `p_later` is empty:
partitions are made before rows need them. What is dropped is a row of `retention` first.
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
WAIT = 1  # seconds a try for the lock may keep inserts waiting
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 60.0)  # seconds between two tries
TURN_SECONDS = 600  # one change of partitions at a time: two that wait in a row would keep inserts waiting twice
LOCK_TIMEOUT = 1205
MOVABLE = 10_000  # rows of p_later that are sorted in while inserts wait: under a second (docs/maintenance.md)
DELETED_AT_ONCE = 5_000  # rows of one transaction


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table with a partition for each day of the UUIDv7 in `column`, or for each month of the time in it."""

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
    """The features and the labels table of a model; none for data without time."""
    names = (schema.features_table, schema.labels_table) if schema.timed else ()
    return [Partitioned(STORE_DB, name, "event_time", daily=False, model=schema.model) for name in names]


def cuts(connection: Connection, table: Partitioned) -> list[Cut]:
    """The partitions of `table` in their order, without `p_later`; [] for a table without any."""
    found = connection.execute(
        text(
            "SELECT partition_name AS name, partition_description AS bound FROM information_schema.partitions"
            " WHERE table_schema = :database AND table_name = :name AND partition_name <> :later"
            " ORDER BY partition_ordinal_position"
        ),
        {"database": table.database, "name": table.name, "later": LATER},
    )
    return [Cut(row.name, table.moment(row.bound.strip("'"))) for row in found]


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
    """Make the partitions up to 14 days, or 3 months, after `today` (UTC); returns the names of those made.

    Rows that are in `p_later` end in the partition of their time; from the oldest one on each day or month gets one.
    Raises: HeldBack where `p_later` holds more than `most` rows, for sorting those in would hold inserts up, or where a
    reader kept the table open over all tries. What was made by then stays.
    """
    with _turn(settings, table, role) as connection:
        present = cuts(connection, table)
        if not present:
            return []
        oldest = min(today, _oldest_later(connection, table) or today)
        missing = table.wanted(present[-1].before, oldest=oldest, today=today)
        for cut in missing if not dry_run else ():
            with _locked(connection, table, pauses):
                _refuse_many(connection, table, most)
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
    """Drop the partitions of `table` that hold nothing from `before` (UTC) on, oldest first; returns their names.

    Each is recorded in `retention` before it goes. Raises: HeldBack where a reader kept the table open over all tries.
    """
    with _turn(settings, table, "maintenance") as connection:
        old = [cut for cut in cuts(connection, table) if cut.before <= before]
        for cut in old if not dry_run else ():
            with _locked(connection, table, pauses):
                _record(settings, table, cut, caused_by=caused_by, now=now)
                connection.execute(text(f"ALTER TABLE {table.name} DROP PARTITION {cut.name}"))
    return [cut.name for cut in old]


def delete_feedback(settings: Settings, *, before: datetime) -> int:
    """Delete the ground truth of predictions made before `before` (UTC), in short transactions; returns the rows."""
    old = prediction_feedback.delete().where(text("prediction_id < :bound").bindparams(bound=str(first_id_of(before))))
    some, deleted = old.with_dialect_options(mariadb_limit=DELETED_AT_ONCE), 0
    while True:
        with session(settings, "maintenance") as connection:
            count = connection.execute(some).rowcount
        deleted += count
        if count < DELETED_AT_ONCE:
            return deleted


@contextmanager
def _turn(settings: Settings, table: Partitioned, role: Role) -> Iterator[Connection]:
    """A connection that nobody else changes partitions beside. Raises: HeldBack, Unreachable, AccessDenied."""
    bound = engine(settings, role, table.database)
    try:
        with bound.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            taken = connection.scalar(text(f"SELECT GET_LOCK('evergreen_partitions', {TURN_SECONDS})"))
            if taken != 1:
                raise HeldBack(what=f"the partitions of {table.name}", reason="others are being changed all the time")
            connection.execute(text(f"SET SESSION lock_wait_timeout = {WAIT}"))
            yield connection
    except DBAPIError as error:
        raise explained(error, settings=settings, role=role) from error
    finally:
        bound.dispose()  # the session ends, and its locks with it


@contextmanager
def _locked(connection: Connection, table: Partitioned, pauses: Sequence[float]) -> Iterator[None]:
    """The table locked for the block. Raises: HeldBack where none of the tries got it within `WAIT` seconds."""
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


def _refuse_many(connection: Connection, table: Partitioned, most: int | None) -> None:
    some = f"SELECT 1 FROM {table.name} PARTITION ({LATER}) LIMIT {(most or 0) + 1}"  # noqa: S608 - our own names
    if most is not None and int(connection.scalar(text(f"SELECT COUNT(*) FROM ({some}) rows_later")) or 0) > most:  # noqa: S608
        raise HeldBack(
            what=f"the partitions of {table.name}",
            reason=f"more than {most:,} rows are in {LATER}, and sorting them in keeps inserts waiting meanwhile: "
            "run `evergreen maintain partitions --hold-inserts` at a quiet hour",
        )


def _oldest_later(connection: Connection, table: Partitioned) -> date | None:
    """The day of the oldest row of `p_later`, or None where it is empty."""
    oldest = connection.scalar(text(f"SELECT MIN({table.column}) FROM {table.name} PARTITION ({LATER})"))  # noqa: S608
    return None if oldest is None else table.moment(str(oldest)).date()


def _record(settings: Settings, table: Partitioned, cut: Cut, *, caused_by: str, now: datetime) -> None:
    """Row first: a drop that then fails has its row already, and a row too many only sends `verify` to the file."""
    same = select(retention.c.id).where(
        retention.c.table_name == table.name,
        retention.c.dropped_before == cut.before,
        retention.c.dropped_at == now,
    )
    row = {"table_name": table.name, "model": table.model, "dropped_before": cut.before}
    with session(settings, "maintenance") as connection:
        if connection.execute(same).first() is None:
            connection.execute(insert(retention).values(**row, caused_by=caused_by, dropped_at=now))
