"""Send requests to a running prediction service at a steady rate, as clients do."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import requests

from db.log.prediction_ids import created_at
from utils.errors import StackError
from utils.patience import Patience

CLIENTS = 16  # the highest number of concurrent requests
ANSWER_PATIENCE = 60.0  # seconds without any answer after which requests are no longer retried
ANSWER_SECONDS = 30.0  # the timeout of one request


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the service.

    number: the number of the request.
    prediction_id: the id of the prediction.
    at: the time of the prediction, UTC, from the prediction_id.
    prediction: the predicted class or number.
    version: the version that answered.
    """

    number: int
    prediction_id: UUID
    at: datetime
    prediction: str | float
    version: int


class RetryingTraffic:
    """`count` requests to `url` at `rate` per second, sent by threads during the context.

    A request that fails is retried until the service answers or rejects it. If the service is slow, later requests are
    sent late. `body` is called with the number of a request just before the request is sent, and returns its body.

    answers: the answers so far.
    refusals: the error of each rejected request.
    """

    def __init__(self, url: str, *, key: str, body: Callable[[int], dict[str, Any]], count: int, rate: float) -> None:
        self.count, self._url, self._body, self._rate = count, url, body, rate
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = ThreadPoolExecutor(CLIENTS, "traffic")
        self._clients: list[Future[None]] = []
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._next, self._start = 0, 0.0
        self.answers: list[Answer] = []
        self.refusals: list[str] = []

    def __enter__(self) -> "RetryingTraffic":
        self._start = time.monotonic()
        self._clients = [self._pool.submit(self._send) for _ in range(min(CLIENTS, self.count))]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    @property
    def done(self) -> int:
        """The number of requests that were answered or rejected."""
        return len(self.answers) + len(self.refusals)

    def is_over(self, *, within: float) -> bool:
        """Wait at most `within` seconds. Return whether all requests are done.

        Raises: StackError if the service does not answer, or does not accept the requests.
        """
        finished, unfinished = wait(self._clients, timeout=within, return_when=FIRST_EXCEPTION)
        for client in finished:
            client.result()
        return not unfinished

    def _send(self) -> None:
        with requests.Session() as session:
            session.trust_env = False  # no proxy, and no key from a .netrc
            session.headers.update(self._headers)
            while (number := self._wait_for_next_number()) is not None:
                answer = self._request(session, self._body(number))
                if isinstance(answer, str):
                    self.refusals.append(answer)
                elif answer is not None:
                    prediction_id = UUID(answer["prediction_id"])
                    at, version = created_at(prediction_id), int(answer["version"])
                    self.answers.append(Answer(number, prediction_id, at, answer["prediction"], version))

    def _wait_for_next_number(self) -> int | None:
        """Wait until the next request must be sent, and return its number. None if no request is left."""
        with self._lock:
            number, self._next = self._next, self._next + 1
        wait_seconds = self._start + number / self._rate - time.monotonic()
        return None if number >= self.count or self._stop.wait(max(0.0, wait_seconds)) else number

    def _request(self, session: requests.Session, body: dict[str, Any]) -> dict[str, Any] | str | None:
        """Return the answer, or the error text if the service rejects the row. None if the traffic was stopped."""
        error_text, pause_seconds = "nothing", 1.0
        patience = Patience(
            f"an answer of {self._url}/predict", lambda: self.done, seconds=ANSWER_PATIENCE, state=lambda: error_text
        )
        while True:
            try:
                response = session.post(f"{self._url}/predict", json=body, timeout=ANSWER_SECONDS)
            except requests.RequestException as error:
                error_text, pause_seconds = type(error).__name__, 1.0
            else:
                if response.ok:
                    answer: dict[str, Any] = response.json()
                    return answer
                error_text = str(response.json().get("error")) if _is_json(response) else response.text[:200]
                if response.status_code == 400:
                    return error_text
                if response.status_code < 500:
                    raise StackError(f"{self._url}/predict answers {response.status_code}: {error_text}")
                pause_seconds = float(response.headers.get("Retry-After", 1))
            patience.check()
            if self._stop.wait(pause_seconds):
                return None


def _is_json(response: requests.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")
