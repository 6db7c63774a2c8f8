"""Start one program: `launcher.py FILE DIGEST` executes the program in FILE, as JSON {"argv", "environment"}.

The supervisor's configuration can't hold every value, for example a password with a quote and a blank before a
semicolon. It would also show secrets, but FILE can only be read by its owner. DIGEST changes with the content of FILE:
the supervisor then sees another command line and restarts the program. Only the standard library is imported, so a
start takes a few milliseconds.

A killed program may leave child processes that hold its port. The launcher kills them before it starts the program.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

MARKS = ("EVERGREEN_PART_OF", "EVERGREEN_PROGRAM")  # variables with the stack and the program; children inherit them
KILL_SECONDS = 10.0  # after which leftovers are no longer killed


def leftovers(environment: Mapping[str, str]) -> list[int]:
    """The ids of the processes with the marks of `environment`. Empty without marks, or on a system without /proc."""
    if not all(environment.get(name) for name in MARKS):
        return []
    marks, pids = {f"{name}={environment[name]}".encode() for name in MARKS}, []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
            if marks <= set(file.read_bytes().split(b"\0")):
                pids.append(int(file.parent.name))
    return pids


def end_leftovers(environment: Mapping[str, str]) -> None:
    """Kill the leftovers with SIGKILL. An Airflow task that receives SIGTERM would be recorded as failed."""
    deadline = time.monotonic() + KILL_SECONDS
    while (pids := leftovers(environment)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    program = json.loads(Path(sys.argv[1]).read_bytes())
    end_leftovers(program["environment"])
    os.execvpe(program["argv"][0], program["argv"], program["environment"])  # noqa: S606 - no shell is wanted
