"""What a prediction service writes in MariaDB while it answers: its log and feedback. `db.instances` has the rest.

It talks to the driver itself: an insert of 64 rows through SQLAlchemy costs several times what MariaDB takes for it.
Timeouts are short, because a request waits behind every statement here.
"""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pymysql
import uuid6
from pymysql.connections import Connection
from pymysql.constants import COMMAND, CR, ER

from db.literals import statements
from db.session import AWAY, DENIED
from db.tables import prediction_log
from utils.errors import NotNow, SettingMissing
from utils.settings import PLATFORM_DB, Settings

logger = logging.getLogger(__name__)

type Link = Connection[Any]  # generic in its type stubs only, so nothing may evaluate this

type LogRow = tuple[Any, ...]  # with the values of `LOG_COLUMNS`

TIMEOUT = 1  # seconds to connect, and for MariaDB to take or give anything
AT_ONCE = 200_000  # characters of a statement that are sent in one go: what the system keeps for a server that is late
EPOCH = datetime(1970, 1, 1)
VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}  # of RFC 9562, by a random digit

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
# After one of these nothing is known about a statement's outcome, and the next one on the connection would fail too.
UNAVAILABLE = (
    AWAY
    | DENIED
    | {
        0,  # the driver's own: the connection is closed
        CR.CR_SERVER_LOST,
        ER.SERVER_SHUTDOWN,
        ER.LOCK_WAIT_TIMEOUT,
        ER.LOCK_DEADLOCK,
        ER.QUERY_INTERRUPTED,
        ER.OPTION_PREVENTS_STATEMENT,  # read only
        1927,  # connection was killed
        # The server's own troubles, which are no fault of the row.
        ER.DISK_FULL,
        ER.RECORD_FILE_FULL,
        ER.ERROR_ON_WRITE,
        ER.GET_ERRNO,
        ER.OUTOFMEMORY,
        ER.OUT_OF_RESOURCES,
        ER.CANT_CREATE_THREAD,
        ER.ERROR_DURING_COMMIT,
        ER.TOO_MANY_USER_CONNECTIONS,
        ER.USER_LIMIT_REACHED,
        ER.CRASHED_ON_USAGE,
        ER.NO_SUCH_TABLE,  # a restore is under way
    }
)


def new_id(now: datetime) -> UUID:
    """A UUIDv7 of the millisecond of `now` (UTC).

    `uuid6.uuid7` gives each next id a millisecond of its own, so above 1,000 a second its ids run ahead of the clock,
    and with them `created_at` and the partition.
    """
    milliseconds = (now - EPOCH) // timedelta(milliseconds=1)
    return uuid6.UUID(int=milliseconds << 80 | secrets.randbits(76), version=7)


def new_ids(now: datetime, count: int) -> list[str]:
    """As many as `count` of what `new_id` makes, as text: a tenth of the time for each."""
    time, random = f"{(now - EPOCH) // timedelta(milliseconds=1):012x}", secrets.token_hex(10 * count)
    made = []
    for start in range(0, len(random), 20):
        tail = random[start : start + 20]
        made.append(f"{time[:8]}-{time[8:]}-7{tail[:3]}-{VARIANT[tail[3]]}{tail[4:7]}-{tail[7:19]}")
    return made


def repeatable_id(first: datetime, content: str) -> UUID:
    """A UUIDv7 of the millisecond of `first` (UTC) whose other bits come from `content`: the same for the same."""
    milliseconds = (first - EPOCH) // timedelta(milliseconds=1)
    bits = int.from_bytes(hashlib.sha256(content.encode()).digest()) >> (256 - 76)
    return uuid6.UUID(int=milliseconds << 80 | bits, version=7)


def shadow_id(champion_id: UUID, version: int) -> UUID:
    """The id of what the challenger `version` predicts for a logged prediction: of the same millisecond, always the
    same, so that the two rows find each other without a column for it."""
    return repeatable_id(created_at(champion_id), f"{champion_id} {version}")


def to_millisecond(now: datetime) -> datetime:
    """The time that `created_at` finds in an id made at `now`."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def created_at(prediction_id: UUID) -> datetime:
    """The time that is in a UUIDv7, UTC, to the millisecond."""
    return EPOCH + timedelta(milliseconds=prediction_id.int >> 80)


def is_away(error: pymysql.Error) -> bool:
    """Whether it says nothing about the statement, which would fail or succeed another time."""
    return not error.args or error.args[0] in UNAVAILABLE


class Client:
    """One connection as the role `api`, for one thread: made when it is needed, and again after it was lost."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._link: Link | None = None
        self._away = False

    def run[T](self, work: Callable[[Link], T]) -> T:
        """What `work` returns; each of its statements is committed at once.

        Raises: NotNow where MariaDB can't be used, and then it is unknown what it did; pymysql.Error for anything else.
        """
        with self._watching():
            if self._link is None:
                self._link = _connect(self._settings)
            return work(self._link)

    async def insert_soon(self, rows: Sequence[LogRow]) -> bool:
        """Insert `rows` as `insert` does, while the event loop goes on; False, and nothing done, where `run` must.

        That is where there is no connection, and for more rows than the system takes at once from a sender.
        Raises: as `run`.
        """
        made = list(statements(LOG_BEFORE, rows, LOG_AFTER))
        if self._link is None or len(made) != 1 or len(made[0]) > AT_ONCE:
            return False
        with self._watching():
            await _query_soon(self._link, made[0])
        return True

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Give up the connection where it can't be used. Raises: as `run`."""
        try:
            yield
        except (pymysql.Error, SettingMissing) as error:
            if isinstance(error, pymysql.Error) and not is_away(error):
                raise
            self.close()
            if not self._away:
                logger.warning("MariaDB at %s is away: %s", self._settings.mariadb_address, error)
            self._away = True
            raise NotNow(reason="MariaDB is away") from None
        if self._away:
            logger.warning("MariaDB at %s is back", self._settings.mariadb_address)
        self._away = False

    def close(self) -> None:
        """Drop the connection without a word to the server, which may be frozen."""
        link, self._link = self._link, None
        if link is not None:
            link._force_close()  # type: ignore[attr-defined]


def _connect(settings: Settings) -> Link:
    return pymysql.connect(
        host=settings.mariadb_host or "127.0.0.1",
        port=settings.mariadb_port,
        user=settings.db_user("api"),
        password=settings.db_password("api"),
        database=PLATFORM_DB,
        charset="utf8mb4",
        autocommit=True,
        connect_timeout=TIMEOUT,
        read_timeout=TIMEOUT,
        write_timeout=TIMEOUT,
    )


async def _query_soon(connection: Link, statement: str) -> None:
    """`connection.query(statement)`, but the event loop waits for the answer, not this thread.

    The driver's two halves of a query, sending and reading, with the loop's own wait for a socket in between.
    Raises: pymysql.Error.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()
    parts: Any = connection  # without a place in the driver's types
    socket = parts._sock.fileno()
    parts._execute_command(COMMAND.COM_QUERY, statement)
    loop.add_reader(socket, _settle, answer, True)
    late = loop.call_later(TIMEOUT, _settle, answer, False)
    try:
        came = await answer
    finally:
        late.cancel()
        loop.remove_reader(socket)
    if not came:
        raise pymysql.OperationalError(CR.CR_SERVER_LOST, f"no answer within {TIMEOUT} s")
    parts._read_query_result()


def _settle(answer: "asyncio.Future[bool]", came: bool) -> None:
    if not answer.done():
        answer.set_result(came)


def insert(connection: Link, rows: Sequence[LogRow]) -> None:
    """Insert `rows`, each with the values of `LOG_COLUMNS`, in one statement (more only above four megabytes)."""
    for statement in statements(LOG_BEFORE, rows, LOG_AFTER):
        connection.query(statement)


def ping(connection: Link) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


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
