"""The connection of a prediction service to MariaDB. It uses the driver directly.

SQLAlchemy needs several times as long for an insert of 64 rows as MariaDB itself. Timeouts are short, because a request
waits for each statement.
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

type Link = Connection[Any]  # only the type stubs make it generic, so no code may evaluate this alias

MARIADB_SECONDS = 1  # timeout in seconds to connect, to send and to receive
AT_ONCE = 200_000  # characters of a statement that the socket takes at once, even if the server is slow

# After one of these errors the outcome of a statement is unknown, and the connection is not usable any more.
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
        # Troubles of the server. The row is not at fault.
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
    """One connection as the role `api`, for one thread. It connects on first use and reconnects after a loss."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._link: Link | None = None
        self._away = False

    def run[T](self, work: Callable[[Link], T]) -> T:
        """Return the result of `work`. Each of its statements is committed at once.

        Raises: NotNow: MariaDB is not available, and the outcome is unknown. pymysql.Error: any other error.
        """
        with self._checking():
            if self._link is None:
                self._link = _connect(self._settings)
            return work(self._link)

    async def query_soon(self, statement: str) -> bool:
        """Run `statement` without blocking the event loop. Return False, and do nothing, if only `run` can do it.

        Only `run` can connect, and only `run` can send a statement that is longer than the socket takes at once.
        Raises: like `run`.
        """
        if self._link is None or len(statement) > AT_ONCE:
            return False
        with self._checking():
            await _query_soon(self._link, statement)
        return True

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """Close the connection if it is not usable any more. Raises: like `run`."""
        try:
            yield
        except (pymysql.Error, SettingMissing) as error:
            if isinstance(error, pymysql.Error) and not is_away(error):
                raise
            self.close()
            if not self._away:
                logger.warning("MariaDB at %s is not available: %s", self._settings.mariadb_address, error)
            self._away = True
            raise NotNow(reason="MariaDB is away") from None
        if self._away:
            logger.warning("MariaDB at %s is available again", self._settings.mariadb_address)
        self._away = False

    def close(self) -> None:
        """Close the connection without notice to the server, which may be frozen."""
        link, self._link = self._link, None
        if link is not None:
            link._force_close()  # type: ignore[attr-defined]


def is_away(error: pymysql.Error) -> bool:
    """Whether the error is about the server, so the same statement may succeed later."""
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
    """Run `connection.query(statement)`, but let the event loop wait for the answer.

    A query has two halves in the driver, sending and reading. The loop waits for the socket in between.
    Raises: pymysql.Error.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()
    driver: Any = connection  # the driver's types lack these private parts
    socket = driver._sock.fileno()
    driver._execute_command(COMMAND.COM_QUERY, statement)
    loop.add_reader(socket, _settle, answer, True)
    timeout = loop.call_later(MARIADB_SECONDS, _settle, answer, False)
    try:
        answered = await answer
    finally:
        timeout.cancel()
        loop.remove_reader(socket)
    if not answered:
        raise pymysql.OperationalError(CR.CR_SERVER_LOST, f"no answer within {MARIADB_SECONDS} s")
    driver._read_query_result()


def _settle(answer: "asyncio.Future[bool]", answered: bool) -> None:
    if not answer.done():
        answer.set_result(answered)


def ping(connection: Link) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
