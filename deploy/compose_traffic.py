"""Send requests at a steady rate while containers are killed and replaced. Compare the answers with the log."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import requests
from sqlalchemy import text

from db.session import session
from utils.settings import Settings

CLIENTS = 8  # the highest number of concurrent requests
REQUEST_SECONDS = 15.0  # the timeout of one request


@dataclass(frozen=True, slots=True)
class Target:
    """A service to which requests are sent.

    url: the address of the service.
    body: the row of every request, without the entity.
    entity: the column of the entity. Each request has a new value in this column.
    """

    url: str
    body: dict[str, Any]
    entity: str


@dataclass(slots=True)
class TrafficOutcome:
    """The outcome of all requests.

    answered: the number of answered requests.
    failed: the number of failed requests.
    lost: the number of answered requests that are not in the log.
    twice: the number of requests that are in the log more than once.
    errors: the error messages of the first three failures.
    """

    answered: int
    failed: int
    lost: int
    twice: int
    errors: list[str]

    def __str__(self) -> str:
        summary = f"{self.answered:,} answered, of these {self.lost} not in the log and {self.twice} twice"
        return f"{summary}; {self.failed} failed" if self.failed else summary


@dataclass(slots=True)
class UnretriedTraffic:
    """Requests that are sent to each of `targets` in rotation during the context. A failed request is not retried.

    `stack.demo.traffic.RetryingTraffic` retries a request until it is answered. This class counts failures instead.

    targets: the services.
    key: the bearer key of the requests.
    rate: requests per second.
    mark: the beginning of all entities, which identifies these requests in the log.
    answered: the prediction_id of each answered entity.
    failed: the error of each failed request.
    """

    targets: list[Target]
    key: str
    rate: float
    mark: str = field(default_factory=lambda: f"check-{uuid4().hex}")
    answered: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(CLIENTS))

    def __enter__(self) -> "UnretriedTraffic":
        numbers, start = count(), time.monotonic()
        for _ in range(CLIENTS):
            self._pool.submit(self._send, numbers, start)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _send(self, numbers: "count[int]", start: float) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {self.key}"
            for number in numbers:  # next() on a count is atomic
                if self._stop.wait(max(0.0, start + number / self.rate - time.monotonic())):
                    return
                target = self.targets[number % len(self.targets)]
                self._request(session, target, f"{self.mark}-{number}")

    def _request(self, session: requests.Session, target: Target, entity: str) -> None:
        body = {"data": {**target.body, target.entity: entity}}
        try:
            answer = session.post(f"{target.url}/predict", json=body, timeout=REQUEST_SECONDS)
            answer.raise_for_status()
            self.answered[entity] = answer.json()["prediction_id"]
        except requests.RequestException as error:
            self.failed.append(str(error))

    def compare_with_log(self, settings: Settings) -> TrafficOutcome:
        """Compare the answered requests with the prediction log."""
        query = text("SELECT entity_id, prediction_id FROM prediction_log WHERE entity_id LIKE :mark")
        with session(settings, "reader") as connection:
            rows = connection.execute(query, {"mark": f"{self.mark}-%"})
            pairs = [(str(entity), str(prediction_id)) for entity, prediction_id in rows]
        ids, entities = {prediction_id for _, prediction_id in pairs}, {entity for entity, _ in pairs}
        lost = sum(prediction_id not in ids for prediction_id in self.answered.values())
        return TrafficOutcome(len(self.answered), len(self.failed), lost, len(pairs) - len(entities), self.failed[:3])
