"""Requests at a steady rate, each sent once and noted: when, over which connection, and what became of it.

An open loop: the next request leaves on time, whatever became of those before. One asyncio client in a thread of its
own, over keep-alive connections of its own making, so that a failed request is known by its connection.
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
POISON = "-poison-"  # in the entity of a row that MariaDB is to refuse
EVERY = 20  # of so many requests one is poisoned, while `poison` is set


@dataclass(slots=True)
class Asked:
    """One request. Times are of `time.monotonic`; `port` is the client's end of its connection, begun at `connected`.

    Not when the client learned of its connection: the system may have made it for a process that was gone by then.

    `problem`: `refused` where there was no connection and nothing was sent, `lost` where it ended without an answer,
    `silent` after TIMEOUT.
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
    """`rate` requests a second for `row` to /predict at 127.0.0.1:`port`, each with a value of its own for `entity`.

    Use as a context: it starts there and ends with it.
    """

    port: int
    row: Mapping[str, Any]
    entity: str
    rate: float = RATE
    mark: str = field(default_factory=lambda: f"chaos-{token_hex(6)}")
    asked: list[Asked] = field(default_factory=list)
    answered: int = 0
    failed: int = 0
    poison: bool = False
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _idle: list[Link] = field(default_factory=list)

    def __enter__(self) -> "Traffic":
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), name="traffic", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join(CLIENT_SECONDS + 10)

    async def _run(self) -> None:
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not self._over.is_set():
                await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
                poison = POISON if self.poison and number % EVERY == 0 else "-"
                asked = Asked(f"{self.mark}{poison}{number}", time.monotonic())
                self.asked.append(asked)
                tasks.create_task(self._ask(asked))
                number += 1
        for link in self._idle:
            link.writer.close()

    async def _ask(self, asked: Asked) -> None:
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                await self._exchange(asked)
        except (ConnectionError, asyncio.IncompleteReadError):
            asked.problem = "lost" if asked.port else "refused"
        except TimeoutError:
            asked.problem = "silent"
        except Exception as error:  # no account without it
            asked.problem = repr(error)
        asked.ended = time.monotonic()
        self.answered += asked.status == 200
        self.failed += asked.status != 200

    async def _exchange(self, asked: Asked) -> None:
        link = await self._link()
        asked.port, asked.connected = link.port, link.connected
        try:
            content = json.dumps({"data": {**self.row, self.entity: asked.entity}}).encode()
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
        asked.status, asked.retry_after = int(first.split()[1]), "retry-after" in headers
        if asked.status == 200:
            asked.prediction_id = json.loads(body)["prediction_id"]
        if headers.get("connection") == "close":
            link.writer.close()
        else:
            link.used = time.monotonic()
            self._idle.append(link)

    async def _link(self) -> Link:
        """The connection that was used last, if it is still good; or a new one."""
        while self._idle:
            link = self._idle.pop()
            if time.monotonic() - link.used < IDLE and not link.reader.at_eof():
                return link
            link.writer.close()
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return Link(reader, writer, writer.get_extra_info("sockname")[1], began, time.monotonic())

    def count(self, which: Callable[[Asked], bool]) -> int:
        return sum(map(which, self.asked))
