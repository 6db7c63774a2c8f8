"""Run the processes of a benchmark, send load to them, and measure what else uses the machine."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Figure
from utils.settings import inherited_environment
from utils.version import ROOT

READY_SECONDS = 60


@contextmanager
def process(argv: Sequence[str], environment: Mapping[str, str], *, log: Path) -> Iterator[int]:
    """Run a process during the block, and yield its pid.

    At the end of the block the process is terminated. If it still runs after 60 seconds, its process group is killed.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**inherited_environment(), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield server.pid
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_until_ready(port: int, log: Path, *, path: str = "/readyz") -> None:
    """Wait until `path` of the service on `port` answers 200. Raises: TimeoutError with the end of `log`."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"the service on port {port} is not ready:\n{log.read_text()[-2000:]}")


def load(
    port: int, path: str, bodies: Path, *, connections: int, seconds: float, rate: float | None = None
) -> dict[str, Any]:
    """Run `benchmarks.load_generator` in its own process and return its figures."""
    argv = [
        sys.executable,
        "-m",
        "benchmarks.load_generator",
        "--port",
        str(port),
        "--path",
        path,
        "--bodies",
        str(bodies),
    ]
    argv += ["--connections", str(connections), "--seconds", str(seconds)]
    argv += ["--rate", str(rate)] if rate else []
    generator = subprocess.run(
        argv,
        cwd=ROOT,
        env=inherited_environment(),
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,  # a session has its own share of the processors (autogroup in sched(7))
    )
    figures: dict[str, Any] = json.loads(generator.stdout)
    return figures


class OtherUse:
    """How much processor time other programs have used since this object was created.

    The benchmark could not use that time.
    """

    def __init__(self) -> None:
        self._start = self._read_times()

    def figures(self) -> list[Figure]:
        """Return the figures so far. Call this after all processes of the benchmark have ended."""
        total, used, stolen, own_use = (now - start for now, start in zip(self._read_times(), self._start, strict=True))
        title = f"of the {os.cpu_count()} processors' time"
        return [
            Figure(f"{title}: taken by other programs", 100 * max(0.0, used - own_use) / total, "%"),
            Figure(f"{title}: taken by other machines", 100 * stolen / total, "%"),
        ]

    @staticmethod
    def _read_times() -> tuple[float, float, float, float]:
        """Return four numbers of processor seconds since the start of the machine.

        They are: the total, the time of all programs, the time of other virtual machines, the time of our processes.
        """
        times, own_times = psutil.cpu_times(), psutil.Process().cpu_times()
        stolen = getattr(times, "steal", 0.0)
        unused = times.idle + getattr(times, "iowait", 0.0) + stolen
        return sum(times), sum(times) - unused, stolen, sum(own_times[:4])
