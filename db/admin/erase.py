"""Forget an entity: delete its rows in every table, and set a tombstone so that they are not loaded again.

A tombstone holds a hash of the entity and never its id. It is written before the first deletion. Every deletion can be
repeated, so a second call finishes the work after a crash.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Column, Connection, MetaData, Table, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from db.log.writing import drain_lock
from db.session import engine, explained
from db.store.store_tables import load_lock
from db.tables import dead_letter, forgotten, prediction_feedback, prediction_log
from db.tombstones import entity_sha256
from utils.errors import StackError
from utils.settings import RESULTS_DB, Settings

CHUNK = 50_000  # rows of the log that one statement reads; a long read would block partition maintenance
DELETE_ROWS = 1_000  # rows that one statement deletes and locks
TURN_SECONDS = 3600  # seconds to wait for loads of the same model

Progress = Callable[[int], None]  # called with the number of log rows read so far


@contextmanager
def deleting(settings: Settings) -> Iterator[Connection]:
    """Provide a connection as `evergreen_admin` in autocommit mode, so that locks are short.

    Raises: Unreachable, AccessDenied, SettingMissing, NotFound.
    """
    bound = engine(settings, "admin")
    try:
        with bound.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # No locks on the gaps between rows, because services insert there meanwhile.
            connection.execute(text("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"))
            yield connection
    except DBAPIError as error:
        raise explained(error, settings=settings, role="admin") from error
    finally:
        bound.dispose()


@contextmanager
def turn(connection: Connection, model: str) -> Iterator[None]:
    """Block loads of `model`. A load that read the tombstones before this one was set could still add rows.

    Raises: StackError: a load runs for more than an hour.
    """
    with _locked(connection, load_lock(model)):
        yield


@contextmanager
def _locked(connection: Connection, name: str) -> Iterator[None]:
    lock = {"name": name, "seconds": TURN_SECONDS}
    if connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), lock) != 1:
        raise StackError(f"{name} has been held for an hour: try again when that work has ended")
    try:
        yield
    finally:
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), lock)


def open_tombstone(
    connection: Connection, *, model: str, entity_id: str, places: Sequence[str], caused_by: str, now: datetime
) -> tuple[int, dict[str, int]]:
    """Return the id of an entity's tombstone and its row counts by place. An unfinished tombstone is continued.

    A tombstone is finished if its column `found` has a count for each of `places`. `now` (UTC) becomes the time of
    forgetting, also of a continued tombstone.
    """
    with _locked(connection, drain_lock(model)):  # so that no service logs a spooled row without seeing the tombstone
        return _open_tombstone(connection, model, entity_id, places, caused_by, now)


def _open_tombstone(
    connection: Connection, model: str, entity_id: str, places: Sequence[str], caused_by: str, now: datetime
) -> tuple[int, dict[str, int]]:
    digest = entity_sha256(model, entity_id)
    same_entity = (forgotten.c.model == model) & (forgotten.c.entity_sha256 == digest)
    newest = select(forgotten.c.id, forgotten.c.found).where(same_entity).order_by(forgotten.c.id.desc()).limit(1)
    tombstone = connection.execute(newest).first()
    if tombstone is not None and not set(places) <= set(tombstone.found):
        connection.execute(update(forgotten).where(forgotten.c.id == tombstone.id).values(forgotten_at=now))
        return tombstone.id, dict(tombstone.found)
    row = {"model": model, "entity_sha256": digest, "found": {}, "caused_by": caused_by, "forgotten_at": now}
    return int(connection.execute(insert(forgotten).values(**row)).lastrowid), {}


def record_counts(connection: Connection, tombstone_id: int, row_counts: dict[str, int]) -> None:
    """Record the counts so far, by place, in a tombstone."""
    connection.execute(update(forgotten).where(forgotten.c.id == tombstone_id).values(found=row_counts))


def in_table(connection: Connection, column: "Column[str]", entity_id: str, *, delete: bool) -> int:
    """Count the entity's rows in the column's table. With `delete`, delete them."""
    table = column.table
    if not delete:
        return int(connection.scalar(select(func.count()).select_from(table).where(column == entity_id)) or 0)
    chunk = table.delete().where(column == entity_id).with_dialect_options(mariadb_limit=DELETE_ROWS)
    total = 0
    while count := connection.execute(chunk).rowcount:
        total += count
    return total


def in_log(
    connection: Connection, model: str, entity_id: str, *, delete: bool, progress: Progress | None = None
) -> tuple[int, int]:
    """Count the entity's logged predictions and their feedback. With `delete`, delete both.

    The log has no index on the entity, because it would slow down every insert. So the whole log is read once, in the
    order of its key.
    """
    key, feedback_key = prediction_log.c.prediction_id, prediction_feedback.c.prediction_id
    same_entity = (prediction_log.c.model == model) & (prediction_log.c.entity_id == entity_id)
    predictions = feedback = rows_read = 0
    start = None
    while True:
        next_keys = select(key) if start is None else select(key).where(key > start)
        end = connection.scalar(next_keys.order_by(key).limit(1).offset(CHUNK - 1))
        chunk = select(key).where(same_entity) if start is None else select(key).where(same_entity, key > start)
        ids = connection.scalars(chunk if end is None else chunk.where(key <= end)).all()
        for first in range(0, len(ids), DELETE_ROWS):
            some_ids = ids[first : first + DELETE_ROWS]
            same_ids = feedback_key.in_(some_ids)
            if delete:  # feedback first, because it is found through the log's rows
                feedback += connection.execute(prediction_feedback.delete().where(same_ids)).rowcount
                predictions += connection.execute(prediction_log.delete().where(key.in_(some_ids))).rowcount
            else:
                feedback += int(connection.scalar(select(func.count(prediction_feedback.c.id)).where(same_ids)) or 0)
                predictions += len(some_ids)
        if end is None:
            return predictions, feedback
        start, rows_read = end, rows_read + CHUNK
        if progress:
            progress(rows_read)


def in_dead_letters(connection: Connection, model: str, entity_id: str, *, delete: bool) -> int:
    """Count the entity's dead letters. With `delete`, delete them."""
    same_entity = (dead_letter.c.model == model) & (dead_letter.c.entity_id == entity_id)
    if delete:
        return int(connection.execute(dead_letter.delete().where(same_entity)).rowcount)
    return int(connection.scalar(select(func.count(dead_letter.c.id)).where(same_entity)) or 0)


def results_columns(connection: Connection, model: str) -> list["Column[str]"]:
    """Return the entity column, the first one, of each table in `evergreen_results` with results of `model`."""
    query = text(
        "SELECT table_name AS name, column_name AS entity FROM information_schema.tables"
        " JOIN information_schema.columns USING (table_schema, table_name)"
        " WHERE table_schema = :database AND table_comment = :comment AND ordinal_position = 1 ORDER BY table_name"
    )
    rows = connection.execute(query, {"database": RESULTS_DB, "comment": f"results of {model}"}).all()
    return [Table(row.name, MetaData(), Column(row.entity), schema=RESULTS_DB).c[row.entity] for row in rows]
