"""What a prediction service writes in MariaDB while it answers: its log and feedback."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pymysql
from pymysql.constants import ER

from db.driver import Client, Link
from db.literals import statements
from db.tables import prediction_log
from utils.errors import NotNow

type LogRow = tuple[Any, ...]  # with the values of `LOG_COLUMNS`

LOG_COLUMNS = tuple(column.name for column in prediction_log.columns)
# Replaying a row changes nothing, so a row whose insert got no answer can be sent again. Without a list of columns:
# with one, MariaDB asks for the right to update every column of it, and the log must not be changed by who writes it.
LOG = (
    f"INSERT INTO prediction_log VALUES ({', '.join(['%s'] * len(LOG_COLUMNS))})"  # noqa: S608 - constants only
    " ON DUPLICATE KEY UPDATE prediction_id = VALUES(prediction_id)"
)
LOG_BEFORE, LOG_AFTER = LOG.partition("(")[0], LOG.partition(")")[2]  # of the values
# For rows of one's own making, which nobody sends again.
LOG_NEW = LOG.partition(" ON DUPLICATE")[0]
# The id alone says which partition holds the row.
FIND = "SELECT 1 FROM prediction_log WHERE prediction_id = %s"
FEEDBACK = "INSERT INTO prediction_feedback (prediction_id, model, actual, received_at) VALUES (%s, %s, %s, %s)"
BURY = (
    "INSERT INTO dead_letter (model, prediction_id, entity_id, log_row, error, dead_at) VALUES (%s, %s, %s, %s, %s, %s)"
)
FORGOTTEN = "SELECT entity_sha256, MAX(forgotten_at) FROM forgotten WHERE model = %s GROUP BY entity_sha256"


def insert(connection: Link, rows: Sequence[LogRow]) -> None:
    """Insert `rows`, each with the values of `LOG_COLUMNS`, in one statement (more only above four megabytes)."""
    for statement in statements(LOG_BEFORE, rows, LOG_AFTER):
        connection.query(statement)


async def insert_soon(client: Client, rows: Sequence[LogRow]) -> bool:
    """Insert `rows` as `insert` does, while the event loop goes on; False, and nothing done, where `insert` must.

    Raises: as `Client.run`.
    """
    made = list(statements(LOG_BEFORE, rows, LOG_AFTER))
    return len(made) == 1 and await client.query_soon(made[0])


@contextmanager
def draining(connection: Link, model: str) -> Iterator[dict[str, datetime]]:
    """When each forgotten entity of `model` was forgotten, by its hash; nobody is forgotten up to the end of the block.

    Without that a row could be logged after `forget` has looked for it.
    Raises: NotNow where somebody else keeps the turn.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0.5)", (drain_lock(model),))
        if cursor.fetchone() != (1,):
            raise NotNow(reason="another worker empties its spool")
        try:
            yield forgotten(connection, model)
        finally:
            with suppress(pymysql.Error):  # the lock goes with its connection
                cursor.execute("SELECT RELEASE_LOCK(%s)", (drain_lock(model),))


def forgotten(connection: Link, model: str) -> dict[str, datetime]:
    """When each forgotten entity of `model` was forgotten last (UTC), by its hash."""
    with connection.cursor() as cursor:
        cursor.execute(FORGOTTEN, (model,))
        return dict(cursor.fetchall())


def drain_lock(model: str) -> str:
    """The lock of the server under which spooled rows of `model` are logged, or an entity's tombstone is set."""
    return f"evergreen_drain_{model}"


def bury(
    connection: Link, prediction_id: str, *, model: str, entity_id: str, log_row: str, error: int, now: datetime
) -> None:
    """Keep a row that the log refuses, once; `log_row` is the JSON of its values, `now` UTC."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(BURY, (model, prediction_id, entity_id[:64], log_row, error, now))
        except pymysql.IntegrityError as known:
            if known.args[0] != ER.DUP_ENTRY:
                raise


def is_logged(connection: Link, prediction_id: UUID) -> bool:
    with connection.cursor() as cursor:
        return bool(cursor.execute(FIND, (str(prediction_id),)))


def add_feedback(connection: Link, prediction_id: UUID, *, model: str, actual: str) -> None:
    received_at = datetime.now(UTC).replace(tzinfo=None)
    with connection.cursor() as cursor:
        cursor.execute(FEEDBACK, (str(prediction_id), model, actual, received_at))
