"""Forgetting an entity: its rows in every table, and the tombstone that keeps them from being loaded again.

A tombstone holds a hash of the entity and never its id. It is written before anything is deleted, and every deletion
can be repeated, so who comes back after a crash finishes the work.
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

CHUNK = 50_000  # rows of the log that one statement looks at: a reader must not keep partition maintenance waiting
DELETE_ROWS = 1_000  # rows that one statement deletes, and holds locks on until it is done
TURN_SECONDS = 3600  # how long to wait for loads of the same model

Progress = Callable[[int], None]  # told how many rows of the log have been looked at


@contextmanager
def deleting(settings: Settings) -> Iterator[Connection]:
    """A connection as `evergreen_admin` on which every statement is a transaction of its own, its locks short.

    Raises: Unreachable, AccessDenied, SettingMissing, NotFound.
    """
    bound = engine(settings, "admin")
    try:
        with bound.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # No locks on the gaps between rows: others insert there meanwhile.
            connection.execute(text("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"))
            yield connection
    except DBAPIError as error:
        raise explained(error, settings=settings, role="admin") from error
    finally:
        bound.dispose()


@contextmanager
def turn(connection: Connection, model: str) -> Iterator[None]:
    """Keep loads of `model` waiting: one that has looked for tombstones before may yet add rows.

    Raises: StackError where a load keeps its turn for an hour.
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
    """The id of an entity's tombstone and what was found so far: a new one, or one whose work was left undone.

    The work is done once `found` names all `places`. `now` (UTC) is when the entity is forgotten, in both cases.
    """
    with _locked(connection, drain_lock(model)):  # else a service could yet log a spooled row without having seen it
        return _opened(connection, model, entity_id, places, caused_by, now)


def _opened(
    connection: Connection, model: str, entity_id: str, places: Sequence[str], caused_by: str, now: datetime
) -> tuple[int, dict[str, int]]:
    digest = entity_sha256(model, entity_id)
    mine = (forgotten.c.model == model) & (forgotten.c.entity_sha256 == digest)
    newest = select(forgotten.c.id, forgotten.c.found).where(mine).order_by(forgotten.c.id.desc()).limit(1)
    known = connection.execute(newest).first()
    if known is not None and not set(places) <= set(known.found):
        connection.execute(update(forgotten).where(forgotten.c.id == known.id).values(forgotten_at=now))
        return known.id, dict(known.found)
    row = {"model": model, "entity_sha256": digest, "found": {}, "caused_by": caused_by, "forgotten_at": now}
    return int(connection.execute(insert(forgotten).values(**row)).lastrowid), {}


def record_found(connection: Connection, tombstone: int, found: dict[str, int]) -> None:
    """Write what was found so far, by place, to a tombstone."""
    connection.execute(update(forgotten).where(forgotten.c.id == tombstone).values(found=found))


def in_table(connection: Connection, column: "Column[str]", entity_id: str, *, delete: bool) -> int:
    """How many rows of the column's table are the entity's; with `delete` they are gone then."""
    table = column.table
    if not delete:
        return int(connection.scalar(select(func.count()).select_from(table).where(column == entity_id)) or 0)
    some = table.delete().where(column == entity_id).with_dialect_options(mariadb_limit=DELETE_ROWS)
    gone = 0
    while count := connection.execute(some).rowcount:
        gone += count
    return gone


def in_log(
    connection: Connection, model: str, entity_id: str, *, delete: bool, progress: Progress | None = None
) -> tuple[int, int]:
    """How many predictions of the entity are logged, and how much feedback on them; with `delete` both are gone then.

    The log has no index on the entity, for every insert would pay for it: it is read once, in the order of its key.
    """
    key, feedback_key = prediction_log.c.prediction_id, prediction_feedback.c.prediction_id
    mine = (prediction_log.c.model == model) & (prediction_log.c.entity_id == entity_id)
    predictions = feedback = looked = 0
    start = None
    while True:
        ahead = select(key) if start is None else select(key).where(key > start)
        end = connection.scalar(ahead.order_by(key).limit(1).offset(CHUNK - 1))
        chunk = select(key).where(mine) if start is None else select(key).where(mine, key > start)
        ids = connection.scalars(chunk if end is None else chunk.where(key <= end)).all()
        for first in range(0, len(ids), DELETE_ROWS):
            some = ids[first : first + DELETE_ROWS]
            about = feedback_key.in_(some)
            if delete:  # feedback first: the log's rows lead to it
                feedback += connection.execute(prediction_feedback.delete().where(about)).rowcount
                predictions += connection.execute(prediction_log.delete().where(key.in_(some))).rowcount
            else:
                feedback += int(connection.scalar(select(func.count(prediction_feedback.c.id)).where(about)) or 0)
                predictions += len(some)
        if end is None:
            return predictions, feedback
        start, looked = end, looked + CHUNK
        if progress:
            progress(looked)


def in_dead_letters(connection: Connection, model: str, entity_id: str, *, delete: bool) -> int:
    """How many rows that the log refused are the entity's; with `delete` they are gone then."""
    mine = (dead_letter.c.model == model) & (dead_letter.c.entity_id == entity_id)
    if delete:
        return int(connection.execute(dead_letter.delete().where(mine)).rowcount)
    return int(connection.scalar(select(func.count(dead_letter.c.id)).where(mine)) or 0)


def results_columns(connection: Connection, model: str) -> list["Column[str]"]:
    """The column with the entity, the first one, of each table of `evergreen_results` with results of `model`."""
    query = text(
        "SELECT table_name AS name, column_name AS entity FROM information_schema.tables"
        " JOIN information_schema.columns USING (table_schema, table_name)"
        " WHERE table_schema = :database AND table_comment = :comment AND ordinal_position = 1 ORDER BY table_name"
    )
    found = connection.execute(query, {"database": RESULTS_DB, "comment": f"results of {model}"}).all()
    return [Table(row.name, MetaData(), Column(row.entity), schema=RESULTS_DB).c[row.entity] for row in found]
