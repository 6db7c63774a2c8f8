"""Clients that send requests to a service throughout a test, and the answers that they get."""

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
    """The results of the clients so far.

    answers: (status, body, seconds) of each answer.
    failures: the name of the error, for each request without an answer.
    """

    answers: list[tuple[int, dict[str, Any], float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def more(self, count: int) -> None:
        """Wait for `count` more answers."""
        before = len(self.answers)
        wait_for("traffic", lambda: len(self.answers) >= before + count)


@contextmanager
def steady_load(
    service: Service, *, clients: int = 8, pause: float = 0.01, until_closed: bool = False
) -> Iterator[Load]:
    """Run `clients` until the end of the block. Each sends its next request after the answer to the last one.

    Every second client opens a new connection for each request. The remaining clients keep their connection and do not
    check whether the service closed it, like simple clients. With `until_closed` all clients keep their connection, and
    each stops at the answer that closes it.
    """
    load, body = Load(), json.dumps({"data": service.row})

    def send_requests(number: int) -> None:
        link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        while not load.stop.is_set():
            began = time.perf_counter()
            try:
                link.request("POST", "/predict", body, {"Content-Type": "application/json"})
                response = link.getresponse()
                content = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                load.failures.append(type(error).__name__)
                link.close()
            else:
                load.answers.append((response.status, content, time.perf_counter() - began))
                if until_closed and response.will_close:
                    return
            if not until_closed and number % 2:
                link.close()
            time.sleep(pause)
        link.close()

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(send_requests, number) for number in range(clients)]
        try:
            yield load
            if until_closed:
                with suppress(GaveUp):
                    patience = Patience(
                        "the end of every client", lambda: sum(each.done() for each in futures), seconds=60
                    )
                    patience.until(lambda: all(each.done() for each in futures))
        finally:
            load.stop.set()
        for each in futures:
            each.result()
