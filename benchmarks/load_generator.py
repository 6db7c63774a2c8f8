"""A load generator that leaves the processor to what it measures: bare asyncio protocols, no HTTP library.

`python -m benchmarks.load_generator --port 3000 --path /predict --bodies FILE --connections 64 --seconds 10` keeps 64
connections to this machine open, each with one request at a time, and prints one JSON document. FILE has a body a line.

With `--rate 300` requests leave at that rate whether or not the answers keep up, each on a connection that is free. A
latency then counts from the moment at which its request should have left: waiting for a connection is waiting, too.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import uvloop

WARM_UP = 2.0  # seconds that are not counted
STRAGGLERS = 5.0  # seconds, the limit for the last answers of an open loop


class Load:
    """The requests and results that all connections share. Latencies are in seconds."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = cycle(requests)
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.answered_before = 0
        self.counting = False

    def answered(self, status: int, seconds: float) -> None:
        if self.counting:
            self.latencies.append(seconds)
            self.statuses[status] += 1
        else:
            self.answered_before += status == 200


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time. It calls `free` when the answer is complete."""

    def __init__(self, load: Load, free: "Callable[[Connection], None]") -> None:
        self._load, self._free = load, free
        self._received = b""
        self._complete_at = 0  # bytes of a whole answer; 0 while its header is incomplete
        self._since = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._complete_at:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            header = self._received[:end].lower()
            start = header.index(b"content-length:") + 15
            self._complete_at = end + 4 + int(header[start:].partition(b"\r\n")[0])
        if len(self._received) >= self._complete_at:
            self._load.answered(int(self._received[9:12]), time.perf_counter() - self._since)
            self._free(self)

    def send(self, since: float) -> None:
        """Send the next request. Its latency counts from `since`, in seconds of `perf_counter`."""
        self._received, self._complete_at, self._since = b"", 0, since
        self._transport.write(next(self._load.requests))

    def close(self) -> None:
        self._transport.close()


class ClosedLoop:
    """Every connection sends its next request when the answer to the previous one is complete."""

    def __init__(self, load: Load) -> None:
        self._load, self._stopping = load, False

    def free(self, connection: Connection) -> None:
        if self._stopping:
            connection.close()
        else:
            connection.send(time.perf_counter())

    async def run(self, connections: list[Connection], seconds: float) -> float:
        for connection in connections:
            connection.send(time.perf_counter())
        await asyncio.sleep(WARM_UP)
        self._load.counting, start = True, time.perf_counter()
        await asyncio.sleep(seconds)
        self._load.counting, duration = False, time.perf_counter() - start
        self._stopping = True
        await asyncio.gather(*(connection.closed for connection in connections))
        return duration


class OpenLoop:
    """Requests leave at `rate` a second. If no connection is free, a request leaves as soon as one is."""

    def __init__(self, load: Load, rate: float) -> None:
        self._load, self._rate = load, rate
        self._idle: deque[Connection] = deque()  # used in turn: servers close connections that are idle for long
        self._due: deque[float] = deque()  # due times of requests that wait for a connection

    def free(self, connection: Connection) -> None:
        if self._due:
            connection.send(self._due.popleft())
        else:
            self._idle.append(connection)

    async def run(self, connections: list[Connection], seconds: float) -> float:
        self._idle.extend(connections)
        start = time.perf_counter()
        await self._send(start, int(WARM_UP * self._rate))
        await self._wait_for_answers(connections)
        self._load.counting, start = True, time.perf_counter()
        await self._send(start, int(seconds * self._rate))
        await self._wait_for_answers(connections)
        duration = time.perf_counter() - start
        for connection in connections:
            connection.close()
        return duration

    async def _send(self, start: float, count: int) -> None:
        for number in range(count):
            moment = start + number / self._rate
            if (wait := moment - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if self._idle:
                self._idle.popleft().send(moment)
            else:
                self._due.append(moment)

    async def _wait_for_answers(self, connections: list[Connection]) -> None:
        """Wait for all answers. Raises: TimeoutError."""
        async with asyncio.timeout(STRAGGLERS):
            while len(self._idle) < len(connections):
                await asyncio.sleep(0.01)


async def run(
    port: int, path: str, bodies: list[bytes], *, connections: int, seconds: float, rate: float | None = None
) -> dict[str, Any]:
    """Load http://127.0.0.1:`port``path` and return the figures. Times are in milliseconds."""
    header = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    load = Load([f"{header}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    schedule = OpenLoop(load, rate) if rate else ClosedLoop(load)
    loop = asyncio.get_running_loop()
    open_connections = [
        (await loop.create_connection(lambda: Connection(load, schedule.free), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    duration = await schedule.run(open_connections, seconds)
    latencies = sorted(load.latencies)
    good_count = load.statuses[200]
    return {
        "requests_per_second": good_count / duration,
        "answered": good_count + load.answered_before,
        "statuses": dict(load.statuses),
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p95_ms": 1000 * latencies[int(len(latencies) * 0.95)],
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--bodies", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, help="requests a second of an open loop; without it the loop is closed")
    options = parser.parse_args()
    bodies = options.bodies.read_bytes().splitlines()
    measurement = run(
        options.port, options.path, bodies, connections=options.connections, seconds=options.seconds, rate=options.rate
    )
    sys.stdout.write(json.dumps(uvloop.run(measurement)) + "\n")


if __name__ == "__main__":
    main()
