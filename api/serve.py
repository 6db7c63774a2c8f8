"""`python -m api.serve …`: `bentoml serve …`, but it refuses new connections as soon as shutdown begins.

BentoML's parent process keeps the socket open until its workers have ended. A client that connects meanwhile waits for
them and is then disconnected, and it does not know whether its request was read. A client or a proxy that is refused at
once tries another replica.

This process also makes the memory in which the workers share their numbers of connections (`api.http.balance`).
"""

import os
import socket
from contextlib import suppress
from typing import Any

from bentoml._internal.utils.circus import Arbiter
from bentoml_cli.cli import cli

from api.http import balance


def close_the_socket_first() -> None:
    """Make BentoML's parent process shut down the listening socket before it stops its workers."""
    stop: Any = Arbiter.stop  # typed as returning None; it returns an awaitable

    def stop_listening_and_stop(arbiter: Any) -> Any:
        for listening in arbiter.sockets.values():
            with suppress(OSError):  # closed already
                listening.shutdown(socket.SHUT_RDWR)  # the workers share this socket
        return stop(arbiter)

    Arbiter.stop = stop_listening_and_stop  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    close_the_socket_first()
    balance.offer(os.environ)
    cli()
