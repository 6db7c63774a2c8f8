"""Processes for a benchmark, and the load on them."""

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
    """The pid of a process that is ended with its children at the end of the block."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**inherited_environment(), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield started.pid
    finally:
        started.terminate()
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_until_ready(port: int, log: Path, *, path: str = "/readyz") -> None:
    """Return when `path` of the service on `port` answers 200; raise with its log where it does not come."""
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
    """Figures of `benchmarks.load_generator`, run in a process of its own."""
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
    ran = subprocess.run(
        argv,
        cwd=ROOT,
        env=inherited_environment(),
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,  # a share of the processors of its own (sched(7), autogroup)
    )
    figures: dict[str, Any] = json.loads(ran.stdout)
    return figures


class Others:
    """What else used the machine's processors since this was made: they were short then, and the benchmark waited."""

    def __init__(self) -> None:
        self._began = self._now()

    def figures(self) -> list[Figure]:
        """Call it when all processes of the benchmark have ended."""
        passed, used, stolen, own = (now - then for now, then in zip(self._now(), self._began, strict=True))
        what = f"of the {os.cpu_count()} processors' time"
        return [
            Figure(f"{what}: taken by other programs", 100 * max(0.0, used - own) / passed, "%"),
            Figure(f"{what}: taken by other machines", 100 * stolen / passed, "%"),
        ]

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        """Seconds of the processors: all, those that programs used, stolen ones, and those that this process used."""
        times, me = psutil.cpu_times(), psutil.Process().cpu_times()
        stolen = getattr(times, "steal", 0.0)
        unused = times.idle + getattr(times, "iowait", 0.0) + stolen
        return sum(times), sum(times) - unused, stolen, sum(me[:4])
