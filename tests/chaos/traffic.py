"""Send requests at a steady rate, and record the time, connection and outcome of each request.

Each request is sent once and on time, even if earlier requests have no answer yet. The client opens its keep-alive
connections itself, so that the connection of each failed request is known. It runs in a thread of its own.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from secrets import token_hex
from typing import Any

import uvloop

RATE = 200.0  # requests per second
CLIENT_TIMEOUT = 20.0  # seconds that the client waits for an answer; the service gives up after 10
IDLE_LIMIT = 3.0  # seconds after which an idle connection is not used again; the service closes it after 5
POISON = "-poison-"  # part of the entity of a poisoned request, whose row MariaDB should reject
POISON_EVERY = 20  # while `poison` is set, one of so many requests is poisoned


@dataclass(slots=True)
class Request:
    """One request. Times are seconds of `time.monotonic`.

    ended: when the client had the answer or an error. Infinite before that.
    port: the client's port of the connection. 0 without a connection.
    connected: when the client began to connect. A later time would be wrong: the process that accepts a connection may
        have ended before the client sees that it is connected.
    status: the HTTP status. 0 without an answer.
    problem: `refused` if the client could not connect, `lost` if the connection ended without an answer, `silent` if
        there was no answer within CLIENT_TIMEOUT, else the error.
    """

    entity: str
    sent: float
    ended: float = inf
    port: int = 0
    connected: float = inf
    status: int = 0
    retry_after: bool = False
    prediction_id: str = ""
    problem: str = ""

    @property
    def is_poisoned(self) -> bool:
        return POISON in self.entity


@dataclass(slots=True)
class Link:
    """One keep-alive connection. `connected` is when the client began to connect, `used` is the last use."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    port: int
    connected: float
    used: float


@dataclass(slots=True)
class RecordedTraffic:
    """Requests to /predict at a steady rate. As a context manager, it sends requests until the end of the block.

    port: the port of the service at 127.0.0.1.
    row: the values of the request rows.
    entity: the column of the entity. Each request has another value in it.
    rate: requests per second.
    mark: the beginning of all entities of this traffic.
    requests: the requests that were sent.
    answered, failed: the number of requests with and without status 200.
    poison: whether some of the next requests are poisoned.
    """

    port: int
    row: Mapping[str, Any]
    entity: str
    rate: float = RATE
    mark: str = field(default_factory=lambda: f"chaos-{token_hex(6)}")
    requests: list[Request] = field(default_factory=list)
    answered: int = 0
    failed: int = 0
    poison: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _idle: list[Link] = field(default_factory=list)

    def __enter__(self) -> "RecordedTraffic":
        self._thread = threading.Thread(target=lambda: uvloop.run(self._send_all()), name="traffic", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(CLIENT_TIMEOUT + 10)

    async def _send_all(self) -> None:
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                infix = POISON if self.poison and number % POISON_EVERY == 0 else "-"
                request = Request(f"{self.mark}{infix}{number}", time.monotonic())
                self.requests.append(request)
                tasks.create_task(self._send(request))
                number += 1
        for link in self._idle:
            link.writer.close()

    async def _send(self, request: Request) -> None:
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT):
                await self._exchange(request)
        except (ConnectionError, asyncio.IncompleteReadError):
            request.problem = "lost" if request.port else "refused"
        except TimeoutError:
            request.problem = "silent"
        except Exception as error:  # every outcome must be recorded, whatever it is
            request.problem = repr(error)
        request.ended = time.monotonic()
        self.answered += request.status == 200
        self.failed += request.status != 200

    async def _exchange(self, request: Request) -> None:
        link = await self._take_link()
        request.port, request.connected = link.port, link.connected
        try:
            content = json.dumps({"data": {**self.row, self.entity: request.entity}}).encode()
            header = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length:"
            link.writer.write(f"{header} {len(content)}\r\n\r\n".encode() + content)
            status_line, *header_lines = (await link.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)
            }
            body = await link.reader.readexactly(int(headers["content-length"]))
        except BaseException:
            link.writer.close()
            raise
        request.status, request.retry_after = int(status_line.split()[1]), "retry-after" in headers
        if request.status == 200:
            request.prediction_id = json.loads(body)["prediction_id"]
        if headers.get("connection") == "close":
            link.writer.close()
        else:
            link.used = time.monotonic()
            self._idle.append(link)

    async def _take_link(self) -> Link:
        """Return the idle connection that was used last, or a new connection."""
        while self._idle:
            link = self._idle.pop()
            if time.monotonic() - link.used < IDLE_LIMIT and not link.reader.at_eof():
                return link
            link.writer.close()
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return Link(reader, writer, writer.get_extra_info("sockname")[1], began, time.monotonic())

    def count(self, condition: Callable[[Request], bool]) -> int:
        """Return the number of requests that meet `condition`."""
        return sum(map(condition, self.requests))
