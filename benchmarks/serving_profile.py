"""The time of a request by stage, from the service's metrics, and the processor time of each process."""

import os
import re
import resource
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from benchmarks.figures import Figure
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_sides import Side
from tests.services import OwnMariaDB
from utils.priority import give_way

SECONDS, CONNECTIONS = 6.0, 64
LOADS = 3  # loads with many connections
MEAN = re.compile(r'^evergreen_stage_seconds_(sum|count)\{.*stage="(\w+)"\} (\S+)$', re.MULTILINE)
STAGES = {"queue": "waiting for its batch", "score": "scoring, and putting its row together", "commit": "MariaDB"}


def profile(server: OwnMariaDB, side: Side, alone: Side) -> list[Figure]:
    """The figures of one connection, of many connections, and of many with a single worker (`alone`).

    Raises: AssertionError if MariaDB has ended.
    """
    log, target = server.settings.home / "profile.log", (side.port, side.path, side.bodies)
    with process(side.argv, side.environment, log=log) as service_pid:
        wait_until_ready(side.port, log)
        load(*target, connections=CONNECTIONS, seconds=1.0)
        before = _stages(side.port)
        load(*target, connections=1, seconds=SECONDS)
        after = _stages(side.port)
        with _awake():
            awake_ms = load(*target, connections=1, seconds=SECONDS)["p50_ms"]
        assert server.process is not None
        pids = {"the service": service_pid, "MariaDB": server.process.pid}
        cpu_before, generator_cpu = {name: _cpu(pid) for name, pid in pids.items()}, _cpu_of_children()
        answered, busy = _loaded(side)
        used_cpu = {name: _cpu(pid) - cpu_before[name] for name, pid in pids.items()}
        used_cpu["the load generator"] = _cpu_of_children() - generator_cpu
    with process(alone.argv, alone.environment, log=log):
        wait_until_ready(alone.port, log)
        load(alone.port, alone.path, alone.bodies, connections=CONNECTIONS, seconds=1.0)
        _, busy_alone = _loaded(alone)
    means = {name: 1000 * (after[name][0] - before[name][0]) / (after[name][1] - before[name][1]) for name in STAGES}
    return [
        *(Figure(f"/predict, one connection: {stage}, mean", means[name], "ms") for name, stage in STAGES.items()),
        Figure("/predict, one connection, while something else keeps the processors awake: median", awake_ms, "ms"),
        *(
            Figure(
                f"/predict, {CONNECTIONS} connections: processor time of {name}", 1e6 * seconds / answered, "µs/request"
            )
            for name, seconds in used_cpu.items()
        ),
        Figure(f"/predict, {CONNECTIONS} connections: processors busy", 100 * busy, "%"),
        Figure(f"/predict, {CONNECTIONS} connections, one worker: processors busy", 100 * busy_alone, "%"),
        Figure("what all processors can give: one worker, at its cost of a request", 1 / busy_alone, "times"),
    ]


def _loaded(side: Side) -> tuple[int, float]:
    """The number of answers to many connections, and the share of all processors' time that was used."""
    idle_before, total_before = _idle()
    loads = [load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=SECONDS) for _ in range(LOADS)]
    idle_after, total_after = _idle()
    return sum(figures["answered"] for figures in loads), 1 - (idle_after - idle_before) / (total_after - total_before)


@contextmanager
def _awake() -> Iterator[None]:
    """Keep all processors awake during the block. A virtual one takes up to 0.1 ms to wake, and has cold caches."""
    argv = [sys.executable, "-c", "import os\nwhile True: os.sched_yield()"]  # `give_way` explains why
    spinners = [subprocess.Popen(argv, start_new_session=True) for _ in range(os.cpu_count() or 1)]
    try:
        for spinner in spinners:
            give_way(spinner.pid)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def _stages(port: int) -> dict[str, tuple[float, float]]:
    """Stage → (sum in seconds, count), from the service's /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        samples = {(stage, kind): float(value) for kind, stage, value in MEAN.findall(page.read().decode())}
    return {stage: (samples[stage, "sum"], samples[stage, "count"]) for stage in STAGES}


def _idle() -> tuple[float, float]:
    """Idle seconds and total seconds of all processors."""
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0), sum(times)


def _cpu(pid: int) -> float:
    """Seconds of processor time of a process and its living children."""
    parent = psutil.Process(pid)
    times = [member.cpu_times() for member in (parent, *parent.children(recursive=True))]
    return sum(used.user + used.system for used in times)


def _cpu_of_children() -> float:
    """Seconds of processor time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
