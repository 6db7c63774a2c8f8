"""Requests to a running prediction service at a steady rate, as its clients would send them."""

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

CLIENTS = 16  # requests that are under way at once, at most
ANSWER_PATIENCE = 60.0  # seconds without an answer to anybody; until then a request is sent again
ANSWER_SECONDS = 30.0  # seconds for one answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for the request `number`; `at` is the time in its prediction_id, UTC."""

    number: int
    prediction_id: UUID
    at: datetime
    prediction: str | float
    version: int


class Traffic:
    """`count` requests to `url`, one every 1 / `rate` seconds, from a few threads. Use as a context; it starts there.

    `body` gives a request's body by its number, just before it is sent. A service that can't answer in time is waited
    for, and the requests after it are late.
    """

    def __init__(self, url: str, *, key: str, body: Callable[[int], dict[str, Any]], count: int, rate: float) -> None:
        self.count, self._url, self._body, self._rate = count, url, body, rate
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = ThreadPoolExecutor(CLIENTS, "traffic")
        self._clients: list[Future[None]] = []
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._next, self._began = 0, 0.0
        self.answers: list[Answer] = []
        self.refusals: list[str] = []

    def __enter__(self) -> "Traffic":
        self._began = time.monotonic()
        self._clients = [self._pool.submit(self._send) for _ in range(min(CLIENTS, self.count))]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    @property
    def done(self) -> int:
        """How many requests got an answer or a refusal."""
        return len(self.answers) + len(self.refusals)

    def is_over(self, *, within: float) -> bool:
        """Whether all requests are done, looked at for up to `within` seconds.

        Raises: StackError where the service does not answer, or not these requests.
        """
        finished, left = wait(self._clients, timeout=within, return_when=FIRST_EXCEPTION)
        for client in finished:
            client.result()
        return not left

    def _send(self) -> None:
        with requests.Session() as session:
            session.trust_env = False  # no proxy, and no key from a .netrc
            session.headers.update(self._headers)
            while (number := self._next_number()) is not None:
                answer = self._ask(session, self._body(number))
                if isinstance(answer, str):
                    self.refusals.append(answer)
                elif answer is not None:
                    told = UUID(answer["prediction_id"])
                    at, version = created_at(told), int(answer["version"])
                    self.answers.append(Answer(number, told, at, answer["prediction"], version))

    def _next_number(self) -> int | None:
        """The number of the next request, at its time; None at the end."""
        with self._lock:
            number, self._next = self._next, self._next + 1
        late = self._began + number / self._rate - time.monotonic()
        return None if number >= self.count or self._stop.wait(max(0.0, late)) else number

    def _ask(self, session: requests.Session, body: dict[str, Any]) -> dict[str, Any] | str | None:
        """The answer; or why the service refuses the row; None where the traffic was stopped meanwhile."""
        said, pause = "nothing", 1.0
        patience = Patience(
            f"an answer of {self._url}/predict", lambda: self.done, seconds=ANSWER_PATIENCE, state=lambda: said
        )
        while True:
            try:
                response = session.post(f"{self._url}/predict", json=body, timeout=ANSWER_SECONDS)
            except requests.RequestException as error:
                said, pause = type(error).__name__, 1.0
            else:
                if response.ok:
                    answer: dict[str, Any] = response.json()
                    return answer
                said = str(response.json().get("error")) if _is_json(response) else response.text[:200]
                if response.status_code == 400:
                    return said
                if response.status_code < 500:
                    raise StackError(f"{self._url}/predict answers {response.status_code}: {said}")
                pause = float(response.headers.get("Retry-After", 1))
            patience.check()
            if self._stop.wait(pause):
                return None


def _is_json(response: requests.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")
