"""A lock of the stack: only one `up` or `restore` can run at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from stack.programs.folders import runtime
from utils.errors import StackError
from utils.settings import Settings


@contextmanager
def hold_lock(settings: Settings) -> Iterator[None]:
    """Hold the lock of the stack during the block. Two concurrent commands would create the same files.

    Raises: StackError if another command holds the lock.
    """
    with (runtime(settings) / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"an `evergreen up` or `restore` is at work in {settings.home}: wait for it") from None
        yield
