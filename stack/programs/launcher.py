"""Start one program: `launcher.py FILE DIGEST` becomes what FILE describes, as JSON {"argv", "environment"}.

The supervisor's own configuration can't hold every value (a password with a quote and a blank before a semicolon), and
it would show them; FILE is readable by its owner only. DIGEST changes the supervisor's configuration, and so restarts
the program, when the definition in FILE changes. Only the standard library is used: this takes some milliseconds.

A program that was killed may leave children that hold its port or work on unseen; they are ended first.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

MARKS = ("EVERGREEN_PART_OF", "EVERGREEN_PROGRAM")  # which stack and which of its programs; children inherit both
SECONDS = 10.0


def leftovers(environment: Mapping[str, str]) -> list[int]:
    """Ids of the living processes that carry the marks of `environment`; none where it has none, or without /proc."""
    if not all(environment.get(name) for name in MARKS):
        return []
    marks, found = {f"{name}={environment[name]}".encode() for name in MARKS}, []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if marks <= set(file.read_bytes().split(b"\0")):
                found.append(int(file.parent.name))
    return found


def end_leftovers(environment: Mapping[str, str]) -> None:
    """At once, not by asking: nobody listens to them any more, and a task that is asked would count as failed."""
    deadline = time.monotonic() + SECONDS
    while (left := leftovers(environment)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    program = json.loads(Path(sys.argv[1]).read_bytes())
    end_leftovers(program["environment"])
    os.execvpe(program["argv"][0], program["argv"], program["environment"])  # noqa: S606 - no shell is wanted
