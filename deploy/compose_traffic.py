"""Requests at a steady rate while containers are killed and replaced, with counts of answered and logged requests."""

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

CLIENTS = 8
REQUEST_SECONDS = 15.0  # the timeout of one request


@dataclass(frozen=True, slots=True)
class Target:
    """One model's service.

    url: its address.
    body: the row of every request, without the entity.
    entity: the entity's column. Every request has another value in it.
    """

    url: str
    body: dict[str, Any]
    entity: str


@dataclass(slots=True)
class Account:
    """The outcome of all requests.

    answered, failed: numbers of requests.
    lost: answered requests that are not in the log.
    twice: requests that are in the log more than once.
    errors: the messages of the first failures.
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
class Traffic:
    """Requests to `targets` in turn, while the context lasts. Each request is sent once, even if earlier ones failed.

    `stack.demo.traffic` repeats a request until it is answered. This class counts the failures instead.

    targets: the services.
    key: the bearer key of the requests.
    rate: requests a second.
    mark: the beginning of all entities, which identifies the requests in the log.
    answered: the prediction_id of each answered entity.
    failed: the error of each failed request.
    """

    targets: list[Target]
    key: str
    rate: float
    mark: str = field(default_factory=lambda: f"check-{uuid4().hex}")
    answered: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(CLIENTS))

    def __enter__(self) -> "Traffic":
        numbers, began = count(), time.monotonic()
        for _ in range(CLIENTS):
            self._pool.submit(self._send, numbers, began)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()

    def _send(self, numbers: "count[int]", began: float) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {self.key}"
            for number in numbers:  # next() on a count is atomic
                if self._over.wait(max(0.0, began + number / self.rate - time.monotonic())):
                    return
                target = self.targets[number % len(self.targets)]
                self._ask(session, target, f"{self.mark}-{number}")

    def _ask(self, session: requests.Session, target: Target, entity: str) -> None:
        body = {"data": {**target.body, target.entity: entity}}
        try:
            answer = session.post(f"{target.url}/predict", json=body, timeout=REQUEST_SECONDS)
            answer.raise_for_status()
            self.answered[entity] = answer.json()["prediction_id"]
        except requests.RequestException as error:
            self.failed.append(str(error))

    def account(self, settings: Settings) -> Account:
        """Compare the answered requests with the log of `settings`."""
        query = text("SELECT entity_id, prediction_id FROM prediction_log WHERE entity_id LIKE :mark")
        with session(settings, "reader") as connection:
            rows = connection.execute(query, {"mark": f"{self.mark}-%"})
            pairs = [(str(entity), str(prediction_id)) for entity, prediction_id in rows]
        ids, entities = {prediction_id for _, prediction_id in pairs}, {entity for entity, _ in pairs}
        lost = sum(prediction_id not in ids for prediction_id in self.answered.values())
        return Account(len(self.answered), len(self.failed), lost, len(pairs) - len(entities), self.failed[:3])
