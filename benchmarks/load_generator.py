"""Send requests to a local HTTP service, and print its throughput and latencies.

`python -m benchmarks.load_generator --port 3000 --path /predict --bodies FILE --connections 64 --seconds 10` keeps 64
connections to this machine open. FILE has one request body per line. The output is one JSON document.

Without `--rate` the loop is closed: each connection sends its next request after the answer to the previous one. With
`--rate 300` the loop is open: 300 requests per second are due, even if answers are late. If no connection is free, a
due request waits for one, and this time is part of its latency.

The generator uses bare asyncio protocols instead of an HTTP library, so it leaves most processor time to the service.
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
ANSWER_TIMEOUT = 5.0  # seconds to wait for the last answers of an open loop


class Load:
    """The requests of a run, and its results so far. All connections share them.

    latencies: seconds of each counted request.
    statuses: the number of counted answers by HTTP status.
    uncounted_answers: answers with status 200 that arrived while `counting` was false.
    """

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = cycle(requests)
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.uncounted_answers = 0
        self.counting = False

    def record_answer(self, status: int, seconds: float) -> None:
        if self.counting:
            self.latencies.append(seconds)
            self.statuses[status] += 1
        else:
            self.uncounted_answers += status == 200


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time. It calls `on_free` when an answer is complete."""

    def __init__(self, load: Load, on_free: "Callable[[Connection], None]") -> None:
        self._load, self._on_free = load, on_free
        self._received = b""
        self._answer_bytes = 0  # length of the whole answer; 0 while its header is incomplete
        self._latency_start = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._answer_bytes:
            header_end = self._received.find(b"\r\n\r\n")
            if header_end < 0:
                return
            header = self._received[:header_end].lower()
            length_start = header.index(b"content-length:") + 15
            self._answer_bytes = header_end + 4 + int(header[length_start:].partition(b"\r\n")[0])
        if len(self._received) >= self._answer_bytes:
            self._load.record_answer(int(self._received[9:12]), time.perf_counter() - self._latency_start)
            self._on_free(self)

    def send(self, latency_start: float) -> None:
        """Send the next request. Its latency counts from `latency_start`, in seconds of `perf_counter`."""
        self._received, self._answer_bytes, self._latency_start = b"", 0, latency_start
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
    """`rate` requests per second are due. A due request waits until a connection is free."""

    def __init__(self, load: Load, rate: float) -> None:
        self._load, self._rate = load, rate
        # The connection that is idle for the longest time is used next, because servers close idle connections.
        self._idle: deque[Connection] = deque()
        self._due: deque[float] = deque()  # times at which the waiting requests were due

    def free(self, connection: Connection) -> None:
        if self._due:
            connection.send(self._due.popleft())
        else:
            self._idle.append(connection)

    async def run(self, connections: list[Connection], seconds: float) -> float:
        self._idle.extend(connections)
        start = time.perf_counter()
        await self._send_requests(start, int(WARM_UP * self._rate))
        await self._wait_for_answers(connections)
        self._load.counting, start = True, time.perf_counter()
        await self._send_requests(start, int(seconds * self._rate))
        await self._wait_for_answers(connections)
        duration = time.perf_counter() - start
        for connection in connections:
            connection.close()
        return duration

    async def _send_requests(self, start: float, count: int) -> None:
        for number in range(count):
            due_time = start + number / self._rate
            if (wait := due_time - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if self._idle:
                self._idle.popleft().send(due_time)
            else:
                self._due.append(due_time)

    async def _wait_for_answers(self, connections: list[Connection]) -> None:
        """Wait until every request has its answer. Raises: TimeoutError after ANSWER_TIMEOUT."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while len(self._idle) < len(connections):
                await asyncio.sleep(0.01)


async def run(
    port: int, path: str, bodies: list[bytes], *, connections: int, seconds: float, rate: float | None = None
) -> dict[str, Any]:
    """Send requests to http://127.0.0.1:`port``path`, and return the figures. `seconds` excludes the warm-up."""
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
    ok_count = load.statuses[200]
    return {
        "requests_per_second": ok_count / duration,
        "answered": ok_count + load.uncounted_answers,
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
    parser.add_argument("--rate", type=float, help="due requests per second; without it the loop is closed")
    options = parser.parse_args()
    bodies = options.bodies.read_bytes().splitlines()
    measurement = run(
        options.port, options.path, bodies, connections=options.connections, seconds=options.seconds, rate=options.rate
    )
    sys.stdout.write(json.dumps(uvloop.run(measurement)) + "\n")


if __name__ == "__main__":
    main()
