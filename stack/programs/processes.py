"""Processes of a stack: which are ours, what memory they hold, and how leftovers of a killed run are ended.

Every program starts with a mark in its environment, the folder of its stack, and its children inherit it. A process
that carries the mark of this stack is ours beyond doubt, whoever its parent is by now; nothing else is ever touched.
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
    """True for a living process that was started as a part of the stack in `settings.home`."""
    try:
        return (
            process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get(MARKER) == str(settings.home.resolve())
        )
    except (psutil.Error, OSError):
        return False


def ours(settings: Settings) -> list[psutil.Process]:
    """The living processes of this stack, without the caller and those that started it."""
    myself = psutil.Process()
    spared = {myself.pid, *(parent.pid for parent in myself.parents())}
    return [process for process in psutil.process_iter() if process.pid not in spared and is_ours(process, settings)]


def end(processes: Iterable[psutil.Process], *, seconds: float) -> int:
    """Ask `processes` to end, kill those that have not within `seconds`, and return how many there were."""
    ended = list(processes)
    for process in ended:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in _still_alive(ended, seconds=seconds):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _still_alive(ended, seconds=5)
    return len(ended)


def is_alive(process: psutil.Process) -> bool:
    """Whether `process` still does anything: in a container whose first process reaps nobody, zombies stay for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _still_alive(processes: list[psutil.Process], *, seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def clear_leftovers(settings: Settings, *, seconds: float = 10) -> int:
    """End what a killed run of this stack left behind, its children's children included; the number of processes.

    What has not ended after `seconds` is killed, as a scheduler that hangs on its lost log pipe; MariaDB takes 2 and
    recovers in any case. Call it only while no supervisor of this stack runs.
    """
    count, deadline = 0, time.monotonic() + 2 * seconds
    while (found := ours(settings)) and time.monotonic() < deadline:  # a parent may start another child as it ends
        count += end(found, seconds=seconds)
    return count


def work(*pids: int) -> tuple[int, int]:
    """How much the process trees below and with `pids` have computed, and moved from and to disks, for a `Patience`.

    In steps so large that both stand still while they only poll. Who works takes one in two minutes, also on a busy
    machine, for it counts too that a process would compute and others do; and where the disk is slow.
    """
    computed, moved = 0.0, 0
    for process in chain.from_iterable(map(_tree, pids)):
        with contextlib.suppress(psutil.Error):
            computed += sum(process.cpu_times()[:4])  # its own, and of its children that have ended
            computed += _waited(process.pid)
            if hasattr(process, "io_counters"):  # not on macOS
                io = process.io_counters()
                moved += io.read_bytes + io.write_bytes
    return int(computed / COMPUTED), moved // MOVED


def _waited(pid: int) -> float:
    """Seconds for which the first thread of a process was ready to compute, and others did; only Linux knows them."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid or -1)  # 0 stands for one that does not run, and is the kernel on macOS
        return [root, *root.children(recursive=True)]
    except (psutil.NoSuchProcess, ValueError):
        return []


def pss_mb(pid: int, *, with_children: bool = True) -> float:
    """Memory in MiB of the process tree below and with `pid`; pages shared by n processes count 1/n for each."""
    total = 0
    for process in _tree(pid) if with_children else _tree(pid)[:1]:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)  # only Linux knows the share
    return round(total / MEBIBYTE, 1)
