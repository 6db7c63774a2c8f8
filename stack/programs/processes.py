"""Processes of a stack: find them, measure their memory, and end leftovers of a killed run.

Every program starts with a mark in its environment, the folder of its stack, and its children inherit it. A process
with the mark of this stack belongs to it, even if its parent has changed. Other processes are never touched.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import psutil

from utils.settings import Settings

MARKER, PROGRAM = "EVERGREEN_PART_OF", "EVERGREEN_PROGRAM"
MEBIBYTE = 1024 * 1024
COMPUTED, MOVED = 15.0, 32 * MEBIBYTE  # steps of `work`: seconds of processor time; bytes


def is_ours(process: psutil.Process, settings: Settings) -> bool:
    """Whether `process` is alive and was started as a part of the stack in `settings.home`."""
    try:
        return (
            process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get(MARKER) == str(settings.home.resolve())
        )
    except (psutil.Error, OSError):
        return False


def ours(settings: Settings) -> list[psutil.Process]:
    """The living processes of this stack, without the caller and its parents."""
    caller = psutil.Process()
    excluded = {caller.pid, *(parent.pid for parent in caller.parents())}
    return [process for process in psutil.process_iter() if process.pid not in excluded and is_ours(process, settings)]


def end(processes: Iterable[psutil.Process], *, seconds: float) -> int:
    """Terminate `processes`. Kill the ones still alive after `seconds`. Return the number of processes."""
    targets = list(processes)
    for process in targets:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in _still_alive(targets, seconds=seconds):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _still_alive(targets, seconds=5)
    return len(targets)


def is_alive(process: psutil.Process) -> bool:
    """Whether `process` runs and is no zombie. Zombies stay in a container whose first process does not reap them."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _still_alive(processes: list[psutil.Process], *, seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while (alive := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def clear_leftovers(settings: Settings, *, seconds: float = 10) -> int:
    """End processes that a killed run of this stack left, with all their children. Return the number of processes.

    A process that is still alive after `seconds` is killed, for example a scheduler that hangs on its closed log pipe.
    MariaDB ends within 2 seconds, and recovers if it is killed. Call it only while no supervisor of this stack runs.
    """
    count, deadline = 0, time.monotonic() + 2 * seconds
    while (leftovers := ours(settings)) and time.monotonic() < deadline:  # an ending parent may start another child
        count += end(leftovers, seconds=seconds)
    return count


def work(*pids: int) -> tuple[int, int]:
    """Steps of processor time and of disk bytes that the process trees of `pids` have used: a sign for a `Patience`.

    The steps are so large that polling alone does not change them. A process that works makes a step within two
    minutes, even on a busy machine or a slow disk: time in which it waits for a processor counts too.
    """
    cpu_seconds, io_bytes = 0.0, 0
    for process in chain.from_iterable(map(_tree, pids)):
        with contextlib.suppress(psutil.Error):
            cpu_seconds += sum(process.cpu_times()[:4])  # includes ended children
            cpu_seconds += _ready_seconds(process.pid)
            if hasattr(process, "io_counters"):  # not on macOS
                io = process.io_counters()
                io_bytes += io.read_bytes + io.write_bytes
    return int(cpu_seconds / COMPUTED), io_bytes // MOVED


def _ready_seconds(pid: int) -> float:
    """Seconds that the first thread of a process was ready to run but waited for a processor. 0 if not on Linux."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid or -1)  # 0 means that it does not run; on macOS it is the kernel's id
        return [root, *root.children(recursive=True)]
    except (psutil.NoSuchProcess, ValueError):
        return []


def pss_mb(pid: int, *, with_children: bool = True) -> float:
    """Memory of the process tree of `pid`, in MiB. A page shared by n processes counts 1/n for each."""
    total = 0
    for process in _tree(pid) if with_children else _tree(pid)[:1]:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)  # only Linux has pss
    return round(total / MEBIBYTE, 1)
