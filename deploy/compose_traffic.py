"""Requests at a steady rate while containers are killed and exchanged, and what became of each: answered, logged."""

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
REQUEST_SECONDS = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class Target:
    """One model's service. `body` is what it is asked, with another value of the column `entity` in each request."""

    url: str
    body: dict[str, Any]
    entity: str


@dataclass(slots=True)
class Account:
    """What became of requests. `lost`: answered but not in the log; `twice`: logged more than once."""

    answered: int
    failed: int
    lost: int
    twice: int
    why: list[str]

    def __str__(self) -> str:
        logged = f"{self.answered:,} answered, of these {self.lost} not in the log and {self.twice} twice"
        return f"{logged}; {self.failed} failed" if self.failed else logged


@dataclass(slots=True)
class Traffic:
    """`rate` requests a second to `targets` in turn, each sent once, whatever became of those before it.

    Not `stack.demo.traffic`, which sends a request until it is answered: here the failures are what is counted.

    Use as a context: it starts there and ends with it.
    """

    targets: list[Target]
    key: str
    rate: float
    mark: str = field(default_factory=lambda: f"check-{uuid4().hex}")
    answered: dict[str, str] = field(default_factory=dict)  # entity → prediction_id
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
        """Compare what was answered with the log of `settings`."""
        query = text("SELECT entity_id, prediction_id FROM prediction_log WHERE entity_id LIKE :mark")
        with session(settings, "reader") as connection:
            rows = connection.execute(query, {"mark": f"{self.mark}-%"})
            logged = [(str(entity), str(prediction)) for entity, prediction in rows]
        known, entities = {prediction for _, prediction in logged}, {entity for entity, _ in logged}
        lost = sum(prediction not in known for prediction in self.answered.values())
        return Account(len(self.answered), len(self.failed), lost, len(logged) - len(entities), self.failed[:3])
