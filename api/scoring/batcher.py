"""Group commit: requests that arrive while a batch is at work are the next batch, scored and inserted together.

The busier the service, the larger the batch, and the less each request costs; a lone request waits for nobody. Small
batches stay on the event loop (docs/decisions/0012-one-thread.md), large ones have a thread.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from api.log.prediction_log import PredictionLog, Rows
from api.prometheus import Numbers
from api.requests.idempotency import KEY
from api.requests.row_type import Row
from api.scoring.predict import LoadedVersion, Origin, Prediction
from utils.errors import NotNow

SMALL = 128  # rows up to which the event loop scores a batch itself, in a millisecond or two
BATCH = 512  # rows that are scored and inserted together; a single larger request is a batch of its own
QUEUE = 10_000  # rows that may wait; beyond it a request is told to come back
EXPLAINED = 2_000  # rows that may wait to be explained; it takes longer than anything else

Answers = list[dict[str, Any]]
Score = Callable[[LoadedVersion, Sequence[Row], Sequence[Origin]], list[Prediction]]
Explain = Callable[[LoadedVersion, Sequence[Row], Answers], Answers]
Outcome = tuple[LoadedVersion, Answers] | BaseException


@dataclass(frozen=True, slots=True)
class _Request:
    rows: Sequence[Row]
    origins: Sequence[Origin]
    answered: "asyncio.Future[tuple[LoadedVersion, Answers]]"


class Batcher:
    """Answers requests of one event loop. `version` gives what serves at this moment; a batch asks once.

    `explain` adds reasons to answers. It has a thread of its own and comes after the log, so no batch waits for it.
    `shadow` is given the rows that were logged, on the event loop and once their answers are sent.
    """

    def __init__(
        self,
        *,
        version: Callable[[], LoadedVersion | None],
        score: Score,
        log: PredictionLog,
        explain: Explain,
        numbers: Numbers,
        shadow: Callable[[Rows], None],
    ) -> None:
        self._version, self._score, self._log, self._explain = version, score, log, explain
        self._numbers, self._shadow = numbers, shadow
        self._after: Callable[[], None] = _nothing  # what is left to do for the last batch, once it is answered
        self._waiting: deque[_Request] = deque()
        self._waiting_rows = self._unexplained_rows = 0
        self._arrival = asyncio.Event()
        self._thread, self._explainer = ThreadPoolExecutor(1, "batch"), ThreadPoolExecutor(1, "explain")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; called on the event loop that requests arrive on."""
        self._worker = asyncio.get_running_loop().create_task(self._work(), name="batcher")

    async def stop(self) -> None:
        """Finish the batch at work. No request may arrive any more."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()
        self._explainer.shutdown()
        self._log.close()

    async def predict(
        self, rows: Sequence[Row], *, explain: bool = False, doubts: Sequence[Sequence[str]] = ()
    ) -> Answers:
        """The answers to `rows`, in their order and all by one version, once all of them are in the log.

        With `explain` that version's reasons are among them. `doubts` are further warnings of each row, or of none.

        Raises: NotNow before the first model, when too much waits, and where nothing can be logged; NotLogged.
        """
        if self._version() is None:
            raise NotNow(reason="there is no trained model to serve yet", retry_after=5, cause="no model")
        if self._waiting_rows + len(rows) > QUEUE:
            raise NotNow(reason="too many requests wait already", cause="busy")
        if explain and self._unexplained_rows + len(rows) > EXPLAINED:
            raise NotNow(reason="too many requests wait for reasons already", cause="busy")
        if not explain:
            return (await self._answer(rows, doubts))[1]
        self._unexplained_rows += len(rows)
        try:
            version, answers = await self._answer(rows, doubts)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._explainer, self._explain, version, rows, answers)
        finally:
            self._unexplained_rows -= len(rows)

    async def _answer(self, rows: Sequence[Row], doubts: Sequence[Sequence[str]]) -> tuple[LoadedVersion, Answers]:
        """The answers, and the version that gave them, after their batch."""
        arrived, key = time.perf_counter(), KEY.get()
        origins = [
            Origin(arrived, place, key, told) for place, told in enumerate(doubts or itertools.repeat((), len(rows)))
        ]
        request = _Request(rows, origins, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._waiting_rows += len(rows)
        self._arrival.set()
        return await request.answered

    async def _work(self) -> None:
        while True:
            await self._arrival.wait()
            if batch := self._next_batch():
                for request, outcome in zip(batch, await self._outcomes(batch), strict=True):
                    _settle(request.answered, outcome)
                await asyncio.sleep(0)  # in the loop's next round, before this goes on, the requests send their answers
                self._after()

    def _next_batch(self) -> list[_Request]:
        """The requests of the next batch; without those whose client was answered meanwhile, by a timeout."""
        batch: list[_Request] = []
        rows = 0
        while self._waiting and (not batch or rows + len(self._waiting[0].rows) <= BATCH):
            request = self._waiting.popleft()
            self._waiting_rows -= len(request.rows)
            if not request.answered.done():
                batch.append(request)
                rows += len(request.rows)
        if not self._waiting:
            self._arrival.clear()
        return batch

    async def _outcomes(self, batch: Sequence[_Request]) -> Sequence[Outcome]:
        """Score and log `batch`; for each request its version and answers, or why it gets none."""
        began = time.perf_counter()
        self._after = _nothing
        try:
            version = self._version()
            if version is None:
                raise NotNow(reason="there is no trained model to serve yet", retry_after=5, cause="no model")
            rows = [row for request in batch for row in request.rows]
            origins = [origin for request in batch for origin in request.origins]
            if small := len(rows) <= SMALL:
                predictions = iter(self._score(version, rows, origins))
            else:
                predictions = iter(await self._aside(self._score, version, rows, origins))
            made = [[next(predictions) for _ in request.rows] for request in batch]
            scored = time.perf_counter()
            log_rows = [[each.log_row for each in mine] for mine in made]
            refusals = await self._log.write_soon(log_rows) if small else None
            if refusals is None:
                refusals = await self._aside(self._log.write, log_rows)
            logged = [row for rows, no in zip(log_rows, refusals, strict=True) if not no for row in rows]
            stages = {
                "queue": began - origins[0].arrived,
                "score": scored - began,
                "commit": time.perf_counter() - scored,
            }
            self._after = partial(self._tell, logged, rows=len(rows), **stages)
        except Exception as error:  # whatever it is, the requests must hear of it and the next batch must come
            return [error] * len(batch)
        answers = ([each.answer for each in mine] for mine in made)
        return [refusal or (version, mine) for mine, refusal in zip(answers, refusals, strict=True)]

    def _tell(self, logged: Rows, **measured: Any) -> None:
        self._numbers.batch(**measured)
        self._shadow(logged)

    async def _aside[T](self, work: Callable[..., T], *given: Any) -> T:
        """What `work` returns, by the thread for batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)


def _nothing() -> None:
    pass


def _settle(answered: "asyncio.Future[tuple[LoadedVersion, Answers]]", outcome: Outcome) -> None:
    if answered.done():  # cancelled by its request's timeout
        return
    if isinstance(outcome, BaseException):
        answered.set_exception(outcome)
    else:
        answered.set_result(outcome)
