"""A closed-loop load generator that leaves the processor to what it measures: bare asyncio protocols, no HTTP library.

`python -m benchmarks.load --port 3000 --path /predict --bodies FILE --connections 64 --seconds 10` keeps that many
connections open to this machine, each with one request at a time, and prints one JSON document. FILE has a body a line.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

import uvloop

WARM_UP = 2.0  # seconds that are not counted


class Load:
    """What all connections share. Latencies are in seconds."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = cycle(requests)
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.answered_before = 0
        self.counting = self.stopping = False


class Connection(asyncio.Protocol):
    """One keep-alive connection: the next request leaves when the answer to the last one is complete."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._complete_at = 0  # bytes of a whole answer; 0 while its header is incomplete
        self._sent_at = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

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
            self._answered(int(self._received[9:12]))

    def _answered(self, status: int) -> None:
        if self._load.counting:
            self._load.latencies.append(time.perf_counter() - self._sent_at)
            self._load.statuses[status] += 1
        else:
            self._load.answered_before += status == 200
        if self._load.stopping:
            self._transport.close()
        else:
            self._send()

    def _send(self) -> None:
        self._received, self._complete_at, self._sent_at = b"", 0, time.perf_counter()
        self._transport.write(next(self._load.requests))


async def run(port: int, path: str, bodies: list[bytes], *, connections: int, seconds: float) -> dict[str, Any]:
    """Load http://127.0.0.1:`port``path` and return the figures; times in milliseconds."""
    header = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    load = Load([f"{header}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    loop = asyncio.get_running_loop()
    opened = [
        (await loop.create_connection(lambda: Connection(load), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    await asyncio.sleep(WARM_UP)
    load.counting, began = True, time.perf_counter()
    await asyncio.sleep(seconds)
    load.counting, took = False, time.perf_counter() - began
    load.stopping = True
    await asyncio.gather(*(connection.closed for connection in opened))
    latencies = sorted(load.latencies)
    good = load.statuses[200]
    return {
        "requests_per_second": good / took,
        "answered": good + load.answered_before,
        "statuses": dict(load.statuses),
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--bodies", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    bodies = given.bodies.read_bytes().splitlines()
    work = run(given.port, given.path, bodies, connections=given.connections, seconds=given.seconds)
    sys.stdout.write(json.dumps(uvloop.run(work)) + "\n")


if __name__ == "__main__":
    main()
