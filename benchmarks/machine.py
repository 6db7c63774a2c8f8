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
    """Figures of `benchmarks.load`, run in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.load", "--port", str(port), "--path", path, "--bodies", str(bodies)]
    argv += ["--connections", str(connections), "--seconds", str(seconds)]
    argv += ["--rate", str(rate)] if rate else []
    ran = subprocess.run(argv, cwd=ROOT, env=inherited_environment(), capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(ran.stdout)
    return figures
