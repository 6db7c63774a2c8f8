"""The lowest priority of a process."""

import os
import time
from contextlib import suppress
from pathlib import Path

NICE, ATTEMPTS = 19, 20


def give_way(pid: int) -> None:
    """Let a process run only when nothing else wants the processor.

    The process should call `os.sched_yield` every millisecond while it computes. Otherwise Linux may let it run until
    the next tick although a process of another session woke up. On a kernel 6.18 with 250 ticks a second, a request of
    1.3 ms took 4 ms.

    The process must be the leader of a session. Linux shares the processor first among sessions and then within each
    session (sched(7), "The autogroup feature"), so an idle process alone in its session would keep half a processor.
    No error is raised if the system forbids the change.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
        if hasattr(os, "sched_setscheduler"):  # not on macOS
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    for _ in range(ATTEMPTS):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(NICE))
        except BlockingIOError:  # Linux accepts ten changes a second, for all users together
            time.sleep(0.1)
            continue
        except OSError:  # a system without autogroups
            pass
        return
