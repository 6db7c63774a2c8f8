"""One `up` or `restore` at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from stack.programs.folders import runtime
from utils.errors import StackError
from utils.settings import Settings


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """One `up` or `restore` at a time: two would make the same things twice."""
    with (runtime(settings) / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"an `evergreen up` or `restore` is at work in {settings.home}: wait for it") from None
        yield
