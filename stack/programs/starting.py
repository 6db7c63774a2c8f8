"""Wait until programs that were started answer: for as long as they get on with it."""

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
START_PATIENCE = 120.0  # seconds without a line in the log and without work
LONGEST = 3600.0  # seconds: a program that never answers may log and work for ever
STARTS = 6  # of one program; one that has ended as often will do so again


def wait_for_programs(names: Iterable[str], answers: Callable[[str], bool], supervisor: Supervisor) -> None:
    """Return once each of the programs `names` `answers`.

    Raises: StackError with the last line of the log of one that ends again and again, or gets no further.
    """
    left = list(names)
    begun: defaultdict[str, set[float]] = defaultdict(set)

    def all_answer() -> bool:
        left[:] = [name for name in left if not answers(name)]
        states = supervisor.states() if left else {}
        for name in left:
            if name not in states:
                raise StackError("the supervisor has ended")
            begun[name].add(states[name].since)
            if states[name].state == FATAL or len(begun[name]) > STARTS:
                raise StackError(f"{name} ends again and again; {said(name)}")
        return not left

    def signs() -> list[object]:
        states = supervisor.states()
        return [(size(supervisor.log(name)), work(states[name].pid)) for name in left if name in states]

    def said(name: str) -> str:
        log = supervisor.log(name)
        return f"it last said: {last_words(log, lines=1)} (all of it: {log})"

    patience = Patience(
        ", ".join(left),
        signs,
        seconds=START_PATIENCE,
        longest=LONGEST,
        state=lambda: f"{left[0]} does not answer; {said(left[0])}",
    )
    patience.until(all_answer, every=0.2)


def wait_for_process(name: str, process: Started, answers: Callable[[], bool], *, log: Path) -> None:
    """Return once `process`, which writes to `log`, `answers`.

    Raises: StackError with the last lines of the log where it ends before, or gets no further.
    """

    def does_answer() -> bool:
        if process.poll() is not None:
            raise StackError(f"{name} ended with {process.returncode}; it last said: {last_words(log)}")
        return answers()

    _patience(name, process, log).until(does_answer)


def wait_for_end(name: str, process: Started, *, log: Path) -> None:
    """Return once `process`, which was asked to, has ended. Raises: GaveUp with the last lines of the log."""
    _patience(f"the end of {name}", process, log).until(lambda: process.poll() is not None)


def _patience(what: str, process: Started, log: Path) -> Patience:
    return Patience(
        what,
        lambda: (size(log), work(process.pid)),
        seconds=START_PATIENCE,
        longest=LONGEST,
        state=lambda: last_words(log),
    )
