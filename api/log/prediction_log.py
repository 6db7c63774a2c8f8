"""The prediction log, which every answer waits for. Rows accepted by `write` are in MariaDB or on this disk.

While MariaDB can't be used the breaker is open: batches go straight to the spool, and only `Drainer` probes MariaDB.
`Drainer` closes the breaker when MariaDB takes rows again.
"""

import logging
from collections.abc import Sequence
from typing import Any

import pymysql

from api.log.spool import Spool
from db import driver
from db.log import writing
from utils.clock import utc_now
from utils.errors import NotLogged, NotNow
from utils.settings import Settings

Rows = Sequence[tuple[Any, ...]]

log = logging.getLogger(__name__)


class Breaker:
    """The state that all threads of a worker share: open while MariaDB counts as away."""

    def __init__(self) -> None:
        self.is_open = False

    def open(self) -> None:
        if not self.is_open:
            log.warning("MariaDB takes no predictions: they are spooled on this disk until it does")
        self.is_open = True

    def close(self) -> None:
        if self.is_open:
            log.warning("MariaDB takes predictions again")
        self.is_open = False


class PredictionLog:
    """A writer to the log, with its own connection. It allows one call at a time."""

    def __init__(self, settings: Settings, *, spool: Spool, breaker: Breaker) -> None:
        self._client = driver.Client(settings)
        self._spool, self._breaker = spool, breaker

    def write(self, requests: Sequence[Rows]) -> list[NotLogged | NotNow | None]:
        """Log the rows of all `requests` together. Return an error for each request, or None if it may be answered.

        Halving isolates a row that MariaDB refuses, so that only its request fails. If MariaDB does not reply, the rows
        are spooled. MariaDB may have stored them anyway: inserting them again changes nothing. NotNow means that the
        spool is unavailable too.
        """
        if self._breaker.is_open:
            return self._put(requests)
        try:
            self._client.run(lambda link: writing.insert(link, [row for rows in requests for row in rows]))
        except NotNow:
            self._breaker.open()
            return self._put(requests)
        except pymysql.Error as error:
            if len(requests) > 1:
                half = len(requests) // 2
                return self.write(requests[:half]) + self.write(requests[half:])
            log.error("the log refuses a prediction: MariaDB error %s", error.args[0])  # its message holds values
            return [NotLogged(reason=f"MariaDB error {error.args[0]}")]
        return [None] * len(requests)

    async def write_soon(self, requests: Sequence[Rows]) -> list[NotLogged | NotNow | None] | None:
        """Log like `write`, on the event loop and without blocking it. Return None if `write` must do it instead."""
        if self._breaker.is_open:
            return None
        try:
            is_inserted = await writing.insert_soon(self._client, [row for rows in requests for row in rows])
        except NotNow:
            self._breaker.open()
            return None
        except pymysql.Error:  # a row is refused; `write` finds it
            return None
        return [None] * len(requests) if is_inserted else None

    def _put(self, requests: Sequence[Rows]) -> list[NotLogged | NotNow | None]:
        try:
            self._spool.put([row for rows in requests for row in rows], now=utc_now())
        except NotNow as full:
            return [full] * len(requests)
        return [None] * len(requests)

    def close(self) -> None:
        self._client.close()
