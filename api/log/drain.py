"""From the spool into MariaDB: this worker's rows, then those of workers that died.

A row leaves a spool only after MariaDB has acknowledged its insert, which changes nothing where it is logged already.
One that MariaDB refuses for good moves to `dead_letter`, where monitoring finds it and alerts.
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
IDLE = 2.0  # seconds between two looks for spools of dead workers
PART = 500  # rows of one insert
STOPPING = 10.0  # seconds for what is left at the end

ID, ENTITY, CREATED = (LOG_COLUMNS.index(name) for name in ("prediction_id", "entity_id", "created_at"))
Numbered = Sequence[tuple[int, list[Any]]]

log = logging.getLogger(__name__)


class Drainer:
    """The thread that asks MariaDB while the breaker is open, and empties spools while it is closed."""

    def __init__(self, settings: Settings, model: str, *, spool: Spool, breaker: Breaker, folder: Path) -> None:
        self._model, self._spool, self._breaker, self._folder = model, spool, breaker, folder
        self._client = driver.Client(settings)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """One last try to log what is spooled; the rest is for another worker or the next start."""
        self._stopped.set()
        self._thread.join(STOPPING)
        self._client.close()
        self._spool.close()

    def _run(self) -> None:
        looked = -IDLE
        while not self._stopped.wait(PROBE):
            if self._breaker.is_open or time.monotonic() - looked >= IDLE:
                self._look()
                looked = time.monotonic()
        self._look()

    def _look(self) -> None:
        """Empty this worker's spool, close the breaker, and adopt what dead workers left; NotNow ends it early."""
        try:
            with suppress(NotNow):
                if not self._drain(self._spool) and self._breaker.is_open:
                    self._client.run(driver.ping)
                self._breaker.close()
                with orphans(self._folder) as found:
                    for spool in found:
                        if count := self._drain(spool):
                            log.warning("logged %d predictions that a dead worker had answered", count)
        except Exception:  # the thread must outlive whatever it is
            log.exception("emptying the spool failed; trying again")

    def _drain(self, spool: Spool) -> int:
        """Log the rows of `spool`, oldest first; returns how many left it. The first part that went proves MariaDB up.

        Raises: NotNow where MariaDB can't be used.
        """
        last = gone = 0
        while part := spool.take(after=last, most=PART):
            last = part[-1][0]
            left = self._client.run(partial(self._send, part=part))
            spool.remove(left)
            gone += len(left)
            self._breaker.close()
        if gone:
            spool.checkpoint()
        return gone

    def _send(self, link: driver.Link, *, part: Numbered) -> list[int]:
        """Insert `part`, without the entities forgotten since; returns the numbers of the rows that are settled."""
        with writing.draining(link, self._model) as forgotten:
            rows = [each for each in part if not self._is_forgotten(each[1], forgotten)]
            unsettled = self._insert(link, rows)
        return [number for number, _ in part if number not in unsettled]

    def _is_forgotten(self, row: list[Any], forgotten: dict[str, datetime]) -> bool:
        return was_forgotten(forgotten, self._model, row[ENTITY], datetime.fromisoformat(row[CREATED]))

    def _insert(self, link: driver.Link, rows: Numbered) -> set[int]:
        """Insert `rows`, by halves where MariaDB refuses one; returns the numbers of those that could go nowhere."""
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
        except pymysql.Error as again:
            if driver.is_away(again):
                raise
            log.error("MariaDB error %s: dead_letter refuses it too; it stays in the spool", again.args[0])
            return {number}
        return set()
