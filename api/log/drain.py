"""Moving spooled rows into MariaDB: this worker's rows first, then the rows of dead workers.

A row leaves a spool only after MariaDB has acknowledged its insert. Inserting a logged row again changes nothing. A row
that MariaDB refuses for good moves to `dead_letter`. Monitoring finds it there and alerts.
"""

import json
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pymysql

from api.log.prediction_log import Breaker
from api.log.spool import Spool, orphans
from db import driver
from db.log import writing
from db.log.writing import LOG_COLUMNS
from db.tombstones import was_forgotten
from utils.clock import utc_now
from utils.errors import NotNow
from utils.settings import Settings

PROBE = 0.5  # seconds between two tries while MariaDB is away
IDLE = 2.0  # seconds between two searches for spools of dead workers
PART = 500  # rows of one insert
STOPPING = 10.0  # seconds for the rows that are left at shutdown

ID, ENTITY, CREATED = (LOG_COLUMNS.index(name) for name in ("prediction_id", "entity_id", "created_at"))
Numbered = Sequence[tuple[int, list[Any]]]

log = logging.getLogger(__name__)


class Drainer:
    """A thread that probes MariaDB while the breaker is open, and empties the spools while it is closed."""

    def __init__(self, settings: Settings, model: str, *, spool: Spool, breaker: Breaker, folder: Path) -> None:
        self._model, self._spool, self._breaker, self._folder = model, spool, breaker, folder
        self._client = driver.Client(settings)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Try once more to log the spooled rows. Another worker or the next start logs the rest."""
        self._stopped.set()
        self._thread.join(STOPPING)
        self._client.close()
        self._spool.close()

    def _run(self) -> None:
        last_pass = -IDLE
        while not self._stopped.wait(PROBE):
            if self._breaker.is_open or time.monotonic() - last_pass >= IDLE:
                self._drain_all()
                last_pass = time.monotonic()
        self._drain_all()

    def _drain_all(self) -> None:
        """Empty this worker's spool, close the breaker, and empty the spools of dead workers. Stop at NotNow."""
        try:
            with suppress(NotNow):
                if not self._drain(self._spool) and self._breaker.is_open:
                    self._client.run(driver.ping)
                self._breaker.close()
                with orphans(self._folder) as spools:
                    for spool in spools:
                        if count := self._drain(spool):
                            log.warning("logged %d predictions that a dead worker had answered", count)
        except Exception:  # the thread must survive any error
            log.exception("emptying the spool failed; retrying")

    def _drain(self, spool: Spool) -> int:
        """Log the rows of `spool`, oldest first. Return how many left the spool.

        The first successful insert proves that MariaDB is up, so it closes the breaker.

        Raises: NotNow if MariaDB can't be used.
        """
        last = total = 0
        while part := spool.take(after=last, most=PART):
            last = part[-1][0]
            settled = self._client.run(partial(self._send, part=part))
            spool.remove(settled)
            total += len(settled)
            self._breaker.close()
        if total:
            spool.checkpoint()
        return total

    def _send(self, link: driver.Link, *, part: Numbered) -> list[int]:
        """Insert `part` without entities that were forgotten since. Return the numbers of the settled rows."""
        with writing.draining(link, self._model) as forgotten:
            rows = [(number, row) for number, row in part if not self._is_forgotten(row, forgotten)]
            unsettled = self._insert(link, rows)
        return [number for number, _ in part if number not in unsettled]

    def _is_forgotten(self, row: list[Any], forgotten: dict[str, datetime]) -> bool:
        return was_forgotten(forgotten, self._model, row[ENTITY], datetime.fromisoformat(row[CREATED]))

    def _insert(self, link: driver.Link, rows: Numbered) -> set[int]:
        """Insert `rows`, in halves if MariaDB refuses a row. Return the numbers of the rows that must stay spooled."""
        if not rows:
            return set()
        try:
            writing.insert(link, [tuple(row) for _, row in rows])
        except pymysql.Error as error:
            if driver.is_away(error):
                raise
            if len(rows) > 1:
                half = len(rows) // 2
                return self._insert(link, rows[:half]) | self._insert(link, rows[half:])
            return self._bury(link, *rows[0], error=int(error.args[0]))
        return set()

    def _bury(self, link: driver.Link, number: int, row: list[Any], *, error: int) -> set[int]:
        """Move a row to `dead_letter` and return the empty set. Return its number if `dead_letter` refuses it too."""
        log.error("MariaDB error %d: an answered prediction can't be logged and goes to dead_letter", error)
        try:
            writing.bury(
                link,
                row[ID],
                model=self._model,
                entity_id=row[ENTITY],
                log_row=json.dumps(row),
                error=error,
                now=utc_now(),
            )
        except pymysql.Error as second_error:
            if driver.is_away(second_error):
                raise
            log.error("MariaDB error %s: dead_letter refuses the row too; it stays spooled", second_error.args[0])
            return {number}
        return set()
