"""The lowest priority there is."""

import os
import time
from contextlib import suppress
from pathlib import Path

NICE, ATTEMPTS = 19, 20


def give_way(pid: int) -> None:
    """Let a process run only when nothing else wants the processor.

    It should call `os.sched_yield` every millisecond while it computes. Else Linux may let it go on until its next tick
    where somebody of another session woke up: on a kernel 6.18 with 250 ticks a second a request of 1.3 ms took 4 ms.

    It must be the first of a session: Linux shares the processor among sessions, and only then within each of them
    (sched(7), "The autogroup feature"), so an idle process alone in its session's share would keep half a processor.
    Nothing is raised where the system lets none of it be changed.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
        if hasattr(os, "sched_setscheduler"):  # not on macOS
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    for _ in range(ATTEMPTS):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(NICE))
        except BlockingIOError:  # the system takes ten a second, of all its users together
            time.sleep(0.1)
            continue
        except OSError:  # it has no such thing
            pass
        return
