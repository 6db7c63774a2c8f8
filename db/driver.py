"""A service's own connection to MariaDB, over the driver itself.

An insert of 64 rows through SQLAlchemy costs several times what MariaDB takes for it. Timeouts are short, because a
request waits behind every statement.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.constants import COMMAND, CR, ER

from db.session import AWAY, DENIED
from utils.errors import NotNow, SettingMissing
from utils.settings import PLATFORM_DB, Settings

logger = logging.getLogger(__name__)

type Link = Connection[Any]  # generic in its type stubs only, so nothing may evaluate this

MARIADB_SECONDS = 1  # seconds to connect, and for MariaDB to take or give anything
AT_ONCE = 200_000  # characters of a statement that are sent in one go: what the system keeps for a server that is late

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

    async def query_soon(self, statement: str) -> bool:
        """Run `statement` while the event loop goes on; False, and nothing done, where only `run` can.

        That is where there is no connection, and for more than the system takes at once from a sender.
        Raises: as `run`.
        """
        if self._link is None or len(statement) > AT_ONCE:
            return False
        with self._watching():
            await _query_soon(self._link, statement)
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


def is_away(error: pymysql.Error) -> bool:
    """Whether it says nothing about the statement, which would fail or succeed another time."""
    return not error.args or error.args[0] in UNAVAILABLE


def _connect(settings: Settings) -> Link:
    return pymysql.connect(
        host=settings.mariadb_host or "127.0.0.1",
        port=settings.mariadb_port,
        user=settings.db_user("api"),
        password=settings.db_password("api"),
        database=PLATFORM_DB,
        charset="utf8mb4",
        autocommit=True,
        connect_timeout=MARIADB_SECONDS,
        read_timeout=MARIADB_SECONDS,
        write_timeout=MARIADB_SECONDS,
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
    late = loop.call_later(MARIADB_SECONDS, _settle, answer, False)
    try:
        came = await answer
    finally:
        late.cancel()
        loop.remove_reader(socket)
    if not came:
        raise pymysql.OperationalError(CR.CR_SERVER_LOST, f"no answer within {MARIADB_SECONDS} s")
    parts._read_query_result()


def _settle(answer: "asyncio.Future[bool]", came: bool) -> None:
    if not answer.done():
        answer.set_result(came)


def ping(connection: Link) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
