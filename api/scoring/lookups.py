"""Features by entity from the online store. Requests that arrive during one look-up share the next one."""

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

Features = Mapping[str, tuple[Any, ...] | None]  # by entity; None: in the store, but not usable now
Rows = tuple[list[Row], list[Sequence[str]]]  # rows, and the warnings of each row

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    ids: Sequence[str]
    features: "asyncio.Future[Features]"


class Lookups:
    """The look-ups of one event loop, made by one thread with its own connection."""

    def __init__(self, settings: Settings, *, schemas: Schemas) -> None:
        self._schemas, self._client = schemas, driver.Client(settings)
        self._waiting: deque[_Request] = deque()
        self._waiting_ids = 0
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "lookup")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start working. Call it on the event loop of the requests."""
        self._worker = asyncio.get_running_loop().create_task(self._work(), name="lookups")

    async def stop(self) -> None:
        """Finish the current look-up. No request may arrive any more."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()
        self._client.close()

    async def rows(self, ids: Sequence[str]) -> Rows:
        """A row for each of `ids`, in the same order, with the newest features in the store that a training would use.

        Raises: UnknownEntities if the store lacks an id; NotNow if the store can't be read or too many ids wait.
        """
        if self._waiting_ids + len(ids) > QUEUE:
            raise NotNow(reason="too many look-ups wait already", cause="busy")
        request = _Request(ids, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._waiting_ids += len(ids)
        self._arrival.set()
        features = await request.features
        spec = self._schemas.spec
        if unknown := [(place, name) for place, name in enumerate(ids) if name not in features]:
            raise UnknownEntities(model=spec.name, entity=spec.entity, unknown=unknown)
        return self._rows(ids, features)

    def _rows(self, ids: Sequence[str], features: Features) -> Rows:
        rows: list[Row] = []
        doubts: list[Sequence[str]] = []
        missing = (None,) * len(self._schemas.spec.features.columns)
        for name in ids:
            values = features[name]
            row, row_doubts = stored_row(self._schemas, name, missing if values is None else values)
            rows.append(row)
            doubts.append([NOT_USABLE, *row_doubts] if values is None else row_doubts)
        return rows, doubts

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            batch = self._next_batch()
            names = list({name for request in batch for name in request.ids})
            try:
                outcome: Features | Exception = await loop.run_in_executor(self._thread, self._look_up, names)
            except Exception as error:  # any error is passed to the requests, and the next look-up goes on
                outcome = error
            for request in batch:
                _settle(request.features, outcome)

    def _next_batch(self) -> list[_Request]:
        """The requests of the next look-up, without requests that have timed out meanwhile."""
        batch: list[_Request] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].ids) <= BATCH_ROWS):
            request = self._waiting.popleft()
            self._waiting_ids -= len(request.ids)
            if not request.features.done():
                batch.append(request)
                size += len(request.ids)
        if not self._waiting:
            self._arrival.clear()
        return batch

    def _look_up(self, names: Sequence[str]) -> Features:
        """The stored features of the entities `names`. Raises: NotNow."""
        try:
            return self._client.run(lambda link: online.latest(link, self._schemas.spec.store, names, at=utc_now()))
        except NotNow as error:
            raise NotNow(reason=AWAY, retry_after=error.retry_after) from None
        except pymysql.Error as error:  # its message may hold values
            log.error("the feature store refuses a look-up: MariaDB error %s", error.args[0])
            raise NotNow(reason=AWAY) from None


def _settle(waiting: "asyncio.Future[Features]", outcome: Features | Exception) -> None:
    if waiting.done():  # cancelled by its request's timeout
        return
    if isinstance(outcome, Exception):
        waiting.set_exception(outcome)
    else:
        waiting.set_result(outcome)
