"""Requests at a steady rate. Each is sent once and recorded with its time, connection and outcome.

The loop is open: each request leaves on time, even if earlier ones have no answer yet. One asyncio client in its own
thread opens the keep-alive connections itself, so that the connection of each failed request is known.
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

RATE = 200.0  # requests a second
CLIENT_SECONDS = 20.0  # seconds; the service itself gives up after 10
IDLE = 3.0  # seconds after which a connection is not used again: the service closes it after 5
POISON = "-poison-"  # in the entity of a row that MariaDB should reject
EVERY = 20  # requests for one poisoned request, while `poison` is set


@dataclass(slots=True)
class Request:
    """One request. Times are seconds of `time.monotonic`.

    ended: when the request had its outcome. Infinite until then.
    port: the client's port of the connection. 0 without a connection.
    connected: when the client began to connect. The system may complete a connection for a process that has ended by
        the time the client learns of it.
    problem: `refused` if there was no connection and nothing was sent, `lost` if the connection ended without an
        answer, `silent` after CLIENT_SECONDS, else the error.
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
    """One keep-alive connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    port: int
    connected: float
    used: float


@dataclass(slots=True)
class Traffic:
    """`rate` requests a second for `row` to /predict at 127.0.0.1:`port`, each with its own value for `entity`.

    A context manager: traffic runs from the beginning of the block to its end.
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

    def __enter__(self) -> "Traffic":
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), name="traffic", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(CLIENT_SECONDS + 10)

    async def _run(self) -> None:
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                poison = POISON if self.poison and number % EVERY == 0 else "-"
                request = Request(f"{self.mark}{poison}{number}", time.monotonic())
                self.requests.append(request)
                tasks.create_task(self._send(request))
                number += 1
        for link in self._idle:
            link.writer.close()

    async def _send(self, request: Request) -> None:
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                await self._exchange(request)
        except (ConnectionError, asyncio.IncompleteReadError):
            request.problem = "lost" if request.port else "refused"
        except TimeoutError:
            request.problem = "silent"
        except Exception as error:  # the account needs every outcome
            request.problem = repr(error)
        request.ended = time.monotonic()
        self.answered += request.status == 200
        self.failed += request.status != 200

    async def _exchange(self, request: Request) -> None:
        link = await self._link()
        request.port, request.connected = link.port, link.connected
        try:
            content = json.dumps({"data": {**self.row, self.entity: request.entity}}).encode()
            header = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length:"
            link.writer.write(f"{header} {len(content)}\r\n\r\n".encode() + content)
            first, *lines = (await link.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = await link.reader.readexactly(int(headers["content-length"]))
        except BaseException:
            link.writer.close()
            raise
        request.status, request.retry_after = int(first.split()[1]), "retry-after" in headers
        if request.status == 200:
            request.prediction_id = json.loads(body)["prediction_id"]
        if headers.get("connection") == "close":
            link.writer.close()
        else:
            link.used = time.monotonic()
            self._idle.append(link)

    async def _link(self) -> Link:
        """The connection that was used last, if it is still usable, else a new one."""
        while self._idle:
            link = self._idle.pop()
            if time.monotonic() - link.used < IDLE and not link.reader.at_eof():
                return link
            link.writer.close()
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return Link(reader, writer, writer.get_extra_info("sockname")[1], began, time.monotonic())

    def count(self, condition: Callable[[Request], bool]) -> int:
        return sum(map(condition, self.requests))
