"""Group commit: requests that arrive during one batch form the next batch. They are scored and inserted together.

A busier service has larger batches, and each request costs less. A single request does not wait. Small batches run on
the event loop (docs/decisions/0012-one-thread.md), large ones in a thread.
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
BATCH = 512  # rows that are scored and inserted together; a single larger request is its own batch
QUEUE = 10_000  # rows that may wait; further requests are refused with a time to retry
EXPLAINED = 2_000  # rows that may wait for reasons, which take longer than any other step

Answers = list[dict[str, Any]]
Score = Callable[[LoadedVersion, Sequence[Row], Sequence[Origin]], list[Prediction]]
Explain = Callable[[LoadedVersion, Sequence[Row], Answers], Answers]
Outcome = tuple[LoadedVersion, Answers] | BaseException


@dataclass(frozen=True, slots=True)
class _Request:
    rows: Sequence[Row]
    origins: Sequence[Origin]
    outcome: "asyncio.Future[tuple[LoadedVersion, Answers]]"


class Batcher:
    """Answer the requests of one event loop.

    version: returns the version that serves now. Each batch calls it once.
    score: makes the predictions of a batch.
    log: the prediction log. Every answer waits for it.
    explain: adds reasons to answers. It runs in its own thread after the log, so no batch waits for it.
    numbers: the metrics.
    shadow: takes logged rows on the event loop, after their answers are sent.
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
        self._follow_up: Callable[[], None] = _nothing  # the rest of the work for a batch, once it is answered
        self._waiting: deque[_Request] = deque()
        self._waiting_rows = self._unexplained_rows = 0
        self._arrival = asyncio.Event()
        self._thread, self._explainer = ThreadPoolExecutor(1, "batch"), ThreadPoolExecutor(1, "explain")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start working. Call it on the event loop of the requests."""
        self._worker = asyncio.get_running_loop().create_task(self._work(), name="batcher")

    async def stop(self) -> None:
        """Finish the current batch. No request may arrive any more."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()
        self._explainer.shutdown()
        self._log.close()

    async def predict(
        self, rows: Sequence[Row], *, explain: bool = False, doubts: Sequence[Sequence[str]] = ()
    ) -> Answers:
        """The answers to `rows`, in the same order and all by one version. All of them are in the log.

        With `explain` the answers have that version's reasons. `doubts` are more warnings, one list a row or none.

        Raises: NotNow before the first model, if too many rows wait, or if nothing can be logged; NotLogged.
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
        """Wait for the rows' batch. Return their answers and the version that made them."""
        arrived, key = time.perf_counter(), KEY.get()
        origins = [
            Origin(arrived, place, key, row_doubts)
            for place, row_doubts in enumerate(doubts or itertools.repeat((), len(rows)))
        ]
        request = _Request(rows, origins, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._waiting_rows += len(rows)
        self._arrival.set()
        return await request.outcome

    async def _work(self) -> None:
        while True:
            await self._arrival.wait()
            if batch := self._next_batch():
                for request, outcome in zip(batch, await self._outcomes(batch), strict=True):
                    _settle(request.outcome, outcome)
                await asyncio.sleep(0)  # the requests send their answers in the loop's next round, before this goes on
                self._follow_up()

    def _next_batch(self) -> list[_Request]:
        """The requests of the next batch, without requests that have timed out meanwhile."""
        batch: list[_Request] = []
        rows = 0
        while self._waiting and (not batch or rows + len(self._waiting[0].rows) <= BATCH):
            request = self._waiting.popleft()
            self._waiting_rows -= len(request.rows)
            if not request.outcome.done():
                batch.append(request)
                rows += len(request.rows)
        if not self._waiting:
            self._arrival.clear()
        return batch

    async def _outcomes(self, batch: Sequence[_Request]) -> Sequence[Outcome]:
        """Score and log `batch`. Return a version and answers for each request, or its error."""
        began = time.perf_counter()
        self._follow_up = _nothing
        try:
            version = self._version()
            if version is None:
                raise NotNow(reason="there is no trained model to serve yet", retry_after=5, cause="no model")
            rows = [row for request in batch for row in request.rows]
            origins = [origin for request in batch for origin in request.origins]
            if is_small := len(rows) <= SMALL:
                scored = iter(self._score(version, rows, origins))
            else:
                scored = iter(await self._in_thread(self._score, version, rows, origins))
            predictions = [[next(scored) for _ in request.rows] for request in batch]
            scored_at = time.perf_counter()
            log_rows = [[prediction.log_row for prediction in of_request] for of_request in predictions]
            refusals = await self._log.write_soon(log_rows) if is_small else None
            if refusals is None:
                refusals = await self._in_thread(self._log.write, log_rows)
            logged = [row for rows, refusal in zip(log_rows, refusals, strict=True) if not refusal for row in rows]
            stages = {
                "queue": began - origins[0].arrived,
                "score": scored_at - began,
                "commit": time.perf_counter() - scored_at,
            }
            self._follow_up = partial(self._finish, logged, rows=len(rows), **stages)
        except Exception as error:  # any error is passed to the requests, and the next batch goes on
            return [error] * len(batch)
        answers = ([prediction.answer for prediction in of_request] for of_request in predictions)
        return [refusal or (version, of_request) for of_request, refusal in zip(answers, refusals, strict=True)]

    def _finish(self, logged: Rows, **measurements: Any) -> None:
        """Count an answered batch and pass its logged rows to the shadow."""
        self._numbers.batch(**measurements)
        self._shadow(logged)

    async def _in_thread[T](self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function` in the thread for batches and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def _nothing() -> None:
    pass


def _settle(waiting: "asyncio.Future[tuple[LoadedVersion, Answers]]", outcome: Outcome) -> None:
    if waiting.done():  # cancelled by its request's timeout
        return
    if isinstance(outcome, BaseException):
        waiting.set_exception(outcome)
    else:
        waiting.set_result(outcome)
