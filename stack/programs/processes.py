"""The processes of a stack: find them, measure their memory and work, and end leftovers of a killed run.

Every program is started with the folder of its stack in the environment variable `MARKER`, which child processes
inherit. Only processes with the folder of this stack are ended, even if their parent has changed.
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
CPU_STEP, IO_STEP = 15.0, 32 * MEBIBYTE  # the steps of `work`: seconds of processor time; bytes


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
    """The running processes of this stack, without the calling process and its parents."""
    caller = psutil.Process()
    excluded = {caller.pid, *(parent.pid for parent in caller.parents())}
    return [process for process in psutil.process_iter() if process.pid not in excluded and is_ours(process, settings)]


def end(processes: Iterable[psutil.Process], *, seconds: float) -> int:
    """Terminate `processes`. Kill those that still run after `seconds`. Return the number of processes."""
    targets = list(processes)
    for process in targets:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in _wait_for_end(targets, seconds=seconds):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_for_end(targets, seconds=5)
    return len(targets)


def is_alive(process: psutil.Process) -> bool:
    """Whether `process` runs and is no zombie. In some containers zombies stay, because no process reaps them."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_for_end(processes: list[psutil.Process], *, seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while (alive := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def clear_leftovers(settings: Settings, *, seconds: float = 10) -> int:
    """End processes that a killed run of this stack left, with all their children. Return the number of processes.

    A process that still runs after `seconds` is killed, for example a scheduler that waits for its closed log pipe.
    MariaDB usually ends within 2 seconds and recovers if it is killed. No supervisor of this stack may run.
    """
    count, deadline = 0, time.monotonic() + 2 * seconds
    while (leftovers := ours(settings)) and time.monotonic() < deadline:  # a parent may start a child while it ends
        count += end(leftovers, seconds=seconds)
    return count


def work(*pids: int) -> tuple[int, int]:
    """The work of the process trees of `pids`, as a sign of progress for a `Patience`.

    Returns the processor time in steps of `CPU_STEP` and the disk transfer in steps of `IO_STEP`. A process that only
    polls takes very long for a step. A process that works makes a step within two minutes, even on a busy machine,
    because the time in which it waits for a processor counts too.
    """
    cpu_seconds, io_bytes = 0.0, 0
    for process in chain.from_iterable(map(_tree, pids)):
        with contextlib.suppress(psutil.Error):
            cpu_seconds += sum(process.cpu_times()[:4])  # includes ended children
            cpu_seconds += _waiting_seconds(process.pid)
            if hasattr(process, "io_counters"):  # not on macOS
                io = process.io_counters()
                io_bytes += io.read_bytes + io.write_bytes
    return int(cpu_seconds / CPU_STEP), io_bytes // IO_STEP


def _waiting_seconds(pid: int) -> float:
    """The seconds in which a process's first thread was ready but waited for a processor. 0 if not on Linux."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid or -1)  # 0 means that the program does not run; on macOS the kernel has the id 0
        return [root, *root.children(recursive=True)]
    except (psutil.NoSuchProcess, ValueError):
        return []


def pss_mb(pid: int, *, with_children: bool = True) -> float:
    """The memory of the process tree of `pid`, in MiB. A page that n processes share counts 1/n for each of them."""
    total = 0
    for process in _tree(pid) if with_children else _tree(pid)[:1]:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)  # only Linux has pss
    return round(total / MEBIBYTE, 1)
