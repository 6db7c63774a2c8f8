"""Where the time of a request goes: what the service says of itself, and what each process takes of the processors."""

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
LOADS = 3  # of many connections
MEAN = re.compile(r'^evergreen_stage_seconds_(sum|count)\{.*stage="(\w+)"\} (\S+)$', re.MULTILINE)
STAGES = {"queue": "waiting for its batch", "score": "scoring, and putting its row together", "commit": "MariaDB"}


def profile(server: OwnMariaDB, side: Side, alone: Side) -> list[Figure]:
    """Of one connection and of many, and of many where the service is one worker (`alone`).

    Raises: AssertionError where MariaDB has ended.
    """
    log, asked = server.settings.home / "profile.log", (side.port, side.path, side.bodies)
    with process(side.argv, side.environment, log=log) as pid:
        wait_until_ready(side.port, log)
        load(*asked, connections=CONNECTIONS, seconds=1.0)
        before = _stages(side.port)
        load(*asked, connections=1, seconds=SECONDS)
        after = _stages(side.port)
        with _awake():
            awake = load(*asked, connections=1, seconds=SECONDS)["p50_ms"]
        assert server.process is not None
        parts = {"the service": pid, "MariaDB": server.process.pid}
        cpu, mine = {name: _cpu(each) for name, each in parts.items()}, _cpu_of_children()
        answered, busy = _loaded(side)
        took = {name: _cpu(each) - cpu[name] for name, each in parts.items()}
        took["the load generator"] = _cpu_of_children() - mine
    with process(alone.argv, alone.environment, log=log):
        wait_until_ready(alone.port, log)
        load(alone.port, alone.path, alone.bodies, connections=CONNECTIONS, seconds=1.0)
        _, busy_alone = _loaded(alone)
    means = {name: 1000 * (after[name][0] - before[name][0]) / (after[name][1] - before[name][1]) for name in STAGES}
    return [
        *(Figure(f"/predict, one connection: {told}, mean", means[name], "ms") for name, told in STAGES.items()),
        Figure("/predict, one connection, while something else keeps the processors awake: median", awake, "ms"),
        *(
            Figure(
                f"/predict, {CONNECTIONS} connections: processor time of {name}", 1e6 * each / answered, "µs/request"
            )
            for name, each in took.items()
        ),
        Figure(f"/predict, {CONNECTIONS} connections: processors busy", 100 * busy, "%"),
        Figure(f"/predict, {CONNECTIONS} connections, one worker: processors busy", 100 * busy_alone, "%"),
        Figure("what all processors can give: one worker, at its cost of a request", 1 / busy_alone, "times"),
    ]


def _loaded(side: Side) -> tuple[int, float]:
    """Requests answered under many connections, and the share of all processors' time that was used meanwhile."""
    idle, passed = _idle()
    loads = [load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=SECONDS) for _ in range(LOADS)]
    idle_then, passed_then = _idle()
    return sum(each["answered"] for each in loads), 1 - (idle_then - idle) / (passed_then - passed)


@contextmanager
def _awake() -> Iterator[None]:
    """No processor sleeps meanwhile: to be woken takes a virtual one up to 0.1 ms, and its caches are cold then."""
    spin = [sys.executable, "-c", "import os\nwhile True: os.sched_yield()"]  # why: see `give_way`
    spinning = [subprocess.Popen(spin, start_new_session=True) for _ in range(os.cpu_count() or 1)]
    try:
        for each in spinning:
            give_way(each.pid)
        yield
    finally:
        for each in spinning:
            each.kill()
            each.wait()


def _stages(port: int) -> dict[str, tuple[float, float]]:
    """Sum in seconds and count of each stage, as the service's own page /metrics has them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        found = {(stage, kind): float(value) for kind, stage, value in MEAN.findall(page.read().decode())}
    return {stage: (found[stage, "sum"], found[stage, "count"]) for stage in STAGES}


def _idle() -> tuple[float, float]:
    """Seconds in which the machine's processors did nothing, and seconds of them altogether."""
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0), sum(times)


def _cpu(pid: int) -> float:
    """Seconds of processor time of a process and its living children."""
    parent = psutil.Process(pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _cpu_of_children() -> float:
    """Seconds of processor time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
