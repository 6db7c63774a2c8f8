"""Statements that a prediction service runs while it answers: its log and feedback."""

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

type LogRow = tuple[Any, ...]  # the values of `LOG_COLUMNS`

LOG_COLUMNS = tuple(column.name for column in prediction_log.columns)
# A repeated insert changes nothing, so a row whose insert got no answer can be sent again. The statement has no list of
# columns: with a list MariaDB requires the privilege to update each column, and services must not change the log.
LOG = (
    f"INSERT INTO prediction_log VALUES ({', '.join(['%s'] * len(LOG_COLUMNS))})"  # noqa: S608 - constants only
    " ON DUPLICATE KEY UPDATE prediction_id = VALUES(prediction_id)"
)
LOG_BEFORE, LOG_AFTER = LOG.partition("(")[0], LOG.partition(")")[2]  # the text before and after the values
# For rows that are never sent twice.
LOG_NEW = LOG.partition(" ON DUPLICATE")[0]
# The id alone determines the partition of the row.
FIND = "SELECT 1 FROM prediction_log WHERE prediction_id = %s"
FEEDBACK = "INSERT INTO prediction_feedback (prediction_id, model, actual, received_at) VALUES (%s, %s, %s, %s)"
BURY = (
    "INSERT INTO dead_letter (model, prediction_id, entity_id, log_row, error, dead_at) VALUES (%s, %s, %s, %s, %s, %s)"
)
FORGOTTEN = "SELECT entity_sha256, MAX(forgotten_at) FROM forgotten WHERE model = %s GROUP BY entity_sha256"


def insert(connection: Link, rows: Sequence[LogRow]) -> None:
    """Insert `rows`, each with the values of `LOG_COLUMNS`, in one statement, or in several above four megabytes."""
    for statement in statements(LOG_BEFORE, rows, LOG_AFTER):
        connection.query(statement)


async def insert_soon(client: Client, rows: Sequence[LogRow]) -> bool:
    """Insert `rows` without blocking the event loop. Return False, and do nothing, if only `insert` can do it.

    Raises: like `Client.run`.
    """
    texts = list(statements(LOG_BEFORE, rows, LOG_AFTER))
    return len(texts) == 1 and await client.query_soon(texts[0])


@contextmanager
def draining(connection: Link, model: str) -> Iterator[dict[str, datetime]]:
    """Provide the tombstones of `model`: hash to time. No entity can be forgotten before the end of the block.

    Without the lock a row could be logged after `forget` has searched for it.
    Raises: NotNow: another worker holds the lock.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0.5)", (drain_lock(model),))
        if cursor.fetchone() != (1,):
            raise NotNow(reason="another worker empties its spool")
        try:
            yield forgotten(connection, model)
        finally:
            with suppress(pymysql.Error):  # the lock ends with its connection
                cursor.execute("SELECT RELEASE_LOCK(%s)", (drain_lock(model),))


def forgotten(connection: Link, model: str) -> dict[str, datetime]:
    """Return the hash of each forgotten entity of `model` with the last time it was forgotten (UTC)."""
    with connection.cursor() as cursor:
        cursor.execute(FORGOTTEN, (model,))
        return dict(cursor.fetchall())


def drain_lock(model: str) -> str:
    """Return the name of MariaDB's lock for logging spooled rows of `model` and for setting tombstones."""
    return f"evergreen_drain_{model}"


def bury(
    connection: Link, prediction_id: str, *, model: str, entity_id: str, log_row: str, error: int, now: datetime
) -> None:
    """Record a row that the log refuses as a dead letter, once. `log_row` is the JSON of its values. `now` is UTC."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(BURY, (model, prediction_id, entity_id[:64], log_row, error, now))
        except pymysql.IntegrityError as duplicate:
            if duplicate.args[0] != ER.DUP_ENTRY:
                raise


def is_logged(connection: Link, prediction_id: UUID) -> bool:
    with connection.cursor() as cursor:
        return bool(cursor.execute(FIND, (str(prediction_id),)))


def add_feedback(connection: Link, prediction_id: UUID, *, model: str, actual: str) -> None:
    received_at = datetime.now(UTC).replace(tzinfo=None)
    with connection.cursor() as cursor:
        cursor.execute(FEEDBACK, (str(prediction_id), model, actual, received_at))
