"""Measure the stages of a request from the service's metrics, and the processor time of each process."""

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
LOADS = 3  # how often the load with many connections runs
STAGE_METRIC = re.compile(r'^evergreen_stage_seconds_(sum|count)\{.*stage="(\w+)"\} (\S+)$', re.MULTILINE)
STAGES = {"queue": "waiting for its batch", "score": "scoring, and putting its row together", "commit": "MariaDB"}


def measure_profile(server: OwnMariaDB, side: Side, one_worker: Side) -> list[Figure]:
    """Return the figures of `side` with one and with many connections, and of `one_worker` with many connections.

    Raises: AssertionError if MariaDB has ended.
    """
    log, load_target = server.settings.home / "profile.log", (side.port, side.path, side.bodies)
    with process(side.argv, side.environment, log=log) as service_pid:
        wait_until_ready(side.port, log)
        load(*load_target, connections=CONNECTIONS, seconds=1.0)
        stages_before = _read_stages(side.port)
        load(*load_target, connections=1, seconds=SECONDS)
        stages_after = _read_stages(side.port)
        with _keep_processors_awake():
            awake_ms = load(*load_target, connections=1, seconds=SECONDS)["p50_ms"]
        assert server.process is not None
        pids = {"the service": service_pid, "MariaDB": server.process.pid}
        cpu_before = {name: _read_cpu_seconds(pid) for name, pid in pids.items()}
        generator_before = _read_cpu_seconds_of_children()
        answered, busy_share = _load_fully(side)
        used_cpu = {name: _read_cpu_seconds(pid) - cpu_before[name] for name, pid in pids.items()}
        used_cpu["the load generator"] = _read_cpu_seconds_of_children() - generator_before
    with process(one_worker.argv, one_worker.environment, log=log):
        wait_until_ready(one_worker.port, log)
        load(one_worker.port, one_worker.path, one_worker.bodies, connections=CONNECTIONS, seconds=1.0)
        _, busy_share_of_one = _load_fully(one_worker)
    means = {}  # milliseconds of a request, by stage
    for name in STAGES:
        (sum_before, count_before), (sum_after, count_after) = stages_before[name], stages_after[name]
        means[name] = 1000 * (sum_after - sum_before) / (count_after - count_before)
    return [
        *(Figure(f"/predict, one connection: {stage}, mean", means[name], "ms") for name, stage in STAGES.items()),
        Figure("/predict, one connection, while something else keeps the processors awake: median", awake_ms, "ms"),
        *(
            Figure(
                f"/predict, {CONNECTIONS} connections: processor time of {name}", 1e6 * seconds / answered, "µs/request"
            )
            for name, seconds in used_cpu.items()
        ),
        Figure(f"/predict, {CONNECTIONS} connections: processors busy", 100 * busy_share, "%"),
        Figure(f"/predict, {CONNECTIONS} connections, one worker: processors busy", 100 * busy_share_of_one, "%"),
        Figure("what all processors can give: one worker, at its cost of a request", 1 / busy_share_of_one, "times"),
    ]


def _load_fully(side: Side) -> tuple[int, float]:
    """Load the service over many connections.

    Returns: the number of answers, and the share of processor time that was used (0 to 1).
    """
    idle_before, total_before = _read_idle_seconds()
    loads = [load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=SECONDS) for _ in range(LOADS)]
    idle_after, total_after = _read_idle_seconds()
    return sum(figures["answered"] for figures in loads), 1 - (idle_after - idle_before) / (total_after - total_before)


@contextmanager
def _keep_processors_awake() -> Iterator[None]:
    """Keep all processors awake during the block.

    A virtual processor takes up to 0.1 ms to wake, and its caches are cold then.
    """
    argv = [sys.executable, "-c", "import os\nwhile True: os.sched_yield()"]  # see `utils.priority.give_way`
    spinners = [subprocess.Popen(argv, start_new_session=True) for _ in range(os.cpu_count() or 1)]
    try:
        for spinner in spinners:
            give_way(spinner.pid)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def _read_stages(port: int) -> dict[str, tuple[float, float]]:
    """Read the service's /metrics: stage → (sum in seconds, count)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        samples = {(stage, kind): float(value) for kind, stage, value in STAGE_METRIC.findall(page.read().decode())}
    return {stage: (samples[stage, "sum"], samples[stage, "count"]) for stage in STAGES}


def _read_idle_seconds() -> tuple[float, float]:
    """Return the idle seconds and the total seconds of all processors."""
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0), sum(times)


def _read_cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and of its children that still run."""
    parent = psutil.Process(pid)
    times = [member.cpu_times() for member in (parent, *parent.children(recursive=True))]
    return sum(used.user + used.system for used in times)


def _read_cpu_seconds_of_children() -> float:
    """Return the processor seconds of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
