"""Features by entity from the online store: requests that wait while a look-up is at work share the next one."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pymysql

from api.requests.row_type import Row
from api.requests.schemas import BATCH_ROWS, Schemas, stored_row
from db import driver
from db.store import online
from utils.clock import utc_now
from utils.errors import NotNow, UnknownEntities
from utils.settings import Settings

QUEUE = 10_000  # ids that may wait
NOT_USABLE = "stored features too old, or not valid yet"
AWAY = "the feature store can't be reached, or lacks this model's table"

Found = Mapping[str, tuple[Any, ...] | None]
Rows = tuple[list[Row], list[Sequence[str]]]  # and the doubts about each

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    ids: Sequence[str]
    found: "asyncio.Future[Found]"


class Lookups:
    """Look-ups of one event loop, by one thread with one connection of its own."""

    def __init__(self, settings: Settings, *, schemas: Schemas) -> None:
        self._schemas, self._client = schemas, driver.Client(settings)
        self._waiting: deque[_Request] = deque()
        self._waiting_ids = 0
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "lookup")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; called on the event loop that requests arrive on."""
        self._worker = asyncio.get_running_loop().create_task(self._work(), name="lookups")

    async def stop(self) -> None:
        """End. No request may arrive any more."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()
        self._client.close()

    async def rows(self, ids: Sequence[str]) -> Rows:
        """A row for each of `ids`, in their order: the newest features in the store, where a training would use them.

        Raises: UnknownEntities where the store lacks one; NotNow while it can't be read, and when too much waits.
        """
        if self._waiting_ids + len(ids) > QUEUE:
            raise NotNow(reason="too many look-ups wait already", cause="busy")
        request = _Request(ids, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._waiting_ids += len(ids)
        self._arrival.set()
        found = await request.found
        spec = self._schemas.spec
        if unknown := [(place, name) for place, name in enumerate(ids) if name not in found]:
            raise UnknownEntities(model=spec.name, entity=spec.entity, unknown=unknown)
        return self._rows(ids, found)

    def _rows(self, ids: Sequence[str], found: Found) -> Rows:
        rows: list[Row] = []
        doubts: list[Sequence[str]] = []
        nothing = (None,) * len(self._schemas.spec.features.columns)
        for name in ids:
            values = found[name]
            row, told = stored_row(self._schemas, name, nothing if values is None else values)
            rows.append(row)
            doubts.append([NOT_USABLE, *told] if values is None else told)
        return rows, doubts

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            batch = self._next_batch()
            names = list({name for request in batch for name in request.ids})
            try:
                found: Found | Exception = await loop.run_in_executor(self._thread, self._look_up, names)
            except Exception as error:  # whatever it is, the requests must hear of it and the next look-up must come
                found = error
            for request in batch:
                _settle(request.found, found)

    def _next_batch(self) -> list[_Request]:
        """The requests of the next look-up; without those whose client was answered meanwhile, by a timeout."""
        batch: list[_Request] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].ids) <= BATCH_ROWS):
            request = self._waiting.popleft()
            self._waiting_ids -= len(request.ids)
            if not request.found.done():
                batch.append(request)
                size += len(request.ids)
        if not self._waiting:
            self._arrival.clear()
        return batch

    def _look_up(self, names: Sequence[str]) -> Found:
        """Raises: NotNow."""
        try:
            return self._client.run(lambda link: online.latest(link, self._schemas.spec.store, names, at=utc_now()))
        except NotNow as error:
            raise NotNow(reason=AWAY, retry_after=error.retry_after) from None
        except pymysql.Error as error:  # its message may hold values
            log.error("the feature store refuses a look-up: MariaDB error %s", error.args[0])
            raise NotNow(reason=AWAY) from None


def _settle(waiting: "asyncio.Future[Found]", found: Found | Exception) -> None:
    if waiting.done():  # cancelled by its request's timeout
        return
    if isinstance(found, Exception):
        waiting.set_exception(found)
    else:
        waiting.set_result(found)
