"""Wait until programs answer or end, as long as they make progress."""

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from stack.programs.logs import last_lines, size
from stack.programs.processes import work
from stack.programs.supervisor import FATAL, Supervisor
from utils.errors import StackError
from utils.patience import Patience

Started = subprocess.Popen[bytes] | psutil.Popen
START_PATIENCE = 120.0  # seconds without a new line in the log and without work
LONGEST = 3600.0  # seconds after which a wait ends, because a program that never answers may work without end
MOST_STARTS = 6  # starts of one program after which the wait ends


def wait_for_programs(names: Iterable[str], answers: Callable[[str], bool], supervisor: Supervisor) -> None:
    """Wait until `answers` is true for every name.

    Raises: StackError with the last line of the log if a program ends repeatedly; GaveUp without progress.
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
            if states[name].state == FATAL or len(start_times[name]) > MOST_STARTS:
                raise StackError(f"{name} ends again and again; {log_text(name)}")
        return not waiting

    def log_text(name: str) -> str:
        log = supervisor.log(name)
        return f"it last said: {last_lines(log, lines=1)} (all of it: {log})"

    patience = Patience(
        ", ".join(waiting),
        lambda: [supervisor.progress(name) for name in waiting],
        seconds=START_PATIENCE,
        longest=LONGEST,
        state=lambda: f"{waiting[0]} does not answer; {log_text(waiting[0])}",
    )
    patience.until(all_answer, every=0.2)


def wait_for_process(name: str, process: Started, answers: Callable[[], bool], *, log: Path) -> None:
    """Wait until `process`, which writes to `log`, answers.

    Raises: StackError with the last lines of the log if the process ends; GaveUp if it makes no progress.
    """

    def is_answering() -> bool:
        if process.poll() is not None:
            raise StackError(f"{name} ended with {process.returncode}; it last said: {last_lines(log)}")
        return answers()

    _patience(name, process, log).until(is_answering)


def wait_for_end(name: str, process: Started, *, log: Path) -> None:
    """Wait until a `process` that was told to stop has ended. Raises: GaveUp if it makes no progress."""
    _patience(f"the end of {name}", process, log).until(lambda: process.poll() is not None)


def _patience(awaited: str, process: Started, log: Path) -> Patience:
    return Patience(
        awaited,
        lambda: (size(log), work(process.pid)),
        seconds=START_PATIENCE,
        longest=LONGEST,
        state=lambda: last_lines(log),
    )
