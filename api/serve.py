"""`python -m api.serve …`: `bentoml serve …`, which refuses newcomers from the moment it is asked to end.

BentoML's own parent keeps the socket open until its workers have ended: who connects meanwhile waits in line, for as
long as the workers take, and is then cut off without knowing whether anybody read the request. Refused at once, a
client or a proxy goes elsewhere.

It also makes the memory in which the workers tell each other how many connections they hold (`api.http.balance`).
"""

import os
import socket
from contextlib import suppress
from typing import Any

from bentoml._internal.utils.circus import Arbiter
from bentoml_cli.cli import cli

from api.http import balance


def close_the_door_first() -> None:
    """Make BentoML's parent process end in that order."""
    stop: Any = Arbiter.stop  # typed as giving nothing; what it gives is waited for

    def stop_listening_and_stop(arbiter: Any) -> Any:
        for each in arbiter.sockets.values():
            with suppress(OSError):  # closed by now
                each.shutdown(socket.SHUT_RDWR)  # the workers' socket is the same one
        return stop(arbiter)

    Arbiter.stop = stop_listening_and_stop  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    close_the_door_first()
    balance.offer(os.environ)
    cli()
