"""Clients that keep asking a service while something happens to it, and what they were told."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.services import Service, wait_for
from utils.errors import GaveUp
from utils.patience import Patience


@dataclass
class Load:
    """`answers`: (status, body, seconds) of each answer. `failures`: requests that got none, by the error's name."""

    answers: list[tuple[int, dict[str, Any], float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def more(self, count: int) -> None:
        """Wait until `count` more answers have come."""
        seen = len(self.answers)
        wait_for("traffic", lambda: len(self.answers) >= seen + count)


@contextmanager
def steady_load(
    service: Service, *, clients: int = 8, pause: float = 0.01, until_closed: bool = False
) -> Iterator[Load]:
    """`clients` that ask one after another up to the end of the block. Every other one opens a connection a request.

    The others keep theirs, without a look whether it was closed, as simple clients do; with `until_closed` all do, and
    each ends once it is told that its connection is closed.
    """
    load, body = Load(), json.dumps({"data": service.row})

    def ask(number: int) -> None:
        link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        while not load.stop.is_set():
            began = time.perf_counter()
            try:
                link.request("POST", "/predict", body, {"Content-Type": "application/json"})
                told = link.getresponse()
                content = json.loads(told.read())
            except (OSError, http.client.HTTPException) as error:
                load.failures.append(type(error).__name__)
                link.close()
            else:
                load.answers.append((told.status, content, time.perf_counter() - began))
                if until_closed and told.will_close:
                    return
            if not until_closed and number % 2:
                link.close()
            time.sleep(pause)
        link.close()

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, number) for number in range(clients)]
        try:
            yield load
            if until_closed:
                with suppress(GaveUp):
                    told = Patience("every client to be told", lambda: sum(each.done() for each in asking))
                    told.until(lambda: all(each.done() for each in asking))
        finally:
            load.stop.set()
        for each in asking:
            each.result()
