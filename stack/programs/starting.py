"""Wait until started programs answer, as long as they make progress."""

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from stack.programs.logs import last_words, size
from stack.programs.processes import work
from stack.programs.supervisor import FATAL, Supervisor
from utils.errors import StackError
from utils.patience import Patience

Started = subprocess.Popen[bytes] | psutil.Popen
START_PATIENCE = 120.0  # seconds without a new line in the log and without work
LONGEST = 3600.0  # seconds; a program that never answers might log and work for ever
STARTS = 6  # of one program, before the wait is given up


def wait_for_programs(names: Iterable[str], answers: Callable[[str], bool], supervisor: Supervisor) -> None:
    """Return once `answers` is true for every name.

    Raises: StackError if a program ends repeatedly or makes no progress, with the last line of its log.
    """
    waiting = list(names)
    start_times: defaultdict[str, set[float]] = defaultdict(set)

    def all_answer() -> bool:
        waiting[:] = [name for name in waiting if not answers(name)]
        states = supervisor.states() if waiting else {}
        for name in waiting:
            if name not in states:
                raise StackError("the supervisor has ended")
            start_times[name].add(states[name].since)
            if states[name].state == FATAL or len(start_times[name]) > STARTS:
                raise StackError(f"{name} ends again and again; {log_text(name)}")
        return not waiting

    def log_text(name: str) -> str:
        log = supervisor.log(name)
        return f"it last said: {last_words(log, lines=1)} (all of it: {log})"

    patience = Patience(
        ", ".join(waiting),
        lambda: [supervisor.progress(name) for name in waiting],
        seconds=START_PATIENCE,
        longest=LONGEST,
        state=lambda: f"{waiting[0]} does not answer; {log_text(waiting[0])}",
    )
    patience.until(all_answer, every=0.2)


def wait_for_process(name: str, process: Started, answers: Callable[[], bool], *, log: Path) -> None:
    """Return once `process` answers. It writes to `log`.

    Raises: StackError if it ends before that or makes no progress, with the last lines of the log.
    """

    def is_answering() -> bool:
        if process.poll() is not None:
            raise StackError(f"{name} ended with {process.returncode}; it last said: {last_words(log)}")
        return answers()

    _patience(name, process, log).until(is_answering)


def wait_for_end(name: str, process: Started, *, log: Path) -> None:
    """Return once a `process` that was asked to stop has ended. Raises: GaveUp with the last lines of the log."""
    _patience(f"the end of {name}", process, log).until(lambda: process.poll() is not None)


def _patience(awaited: str, process: Started, log: Path) -> Patience:
    return Patience(
        awaited,
        lambda: (size(log), work(process.pid)),
        seconds=START_PATIENCE,
        longest=LONGEST,
        state=lambda: last_words(log),
    )
