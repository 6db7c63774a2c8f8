"""A worker's HTTP server: uvicorn's, but it takes its share of the connections and ends without dropping anybody.

*Share.* The workers accept from one socket, and whoever is awake takes what has come: of connections that stay open one
worker could have all. So a worker that holds more than twice as many as another leaves a new one to it for a
millisecond, and takes it only if it is still there then: the other may be busy, or gone.

*End.* uvicorn closes every connection without a request at work as soon as it is told to end; a client whose request
is just on its way then sees a reset. So a worker first stops accepting: new connections wait in the socket for the
other workers or the one that comes in its place. It answers what its open connections still ask, each time with
`Connection: close`, and ends once they are gone.
"""

import asyncio
import errno
import logging
import os
import socket
import time
from types import FrameType
from typing import Any

import bentoml
import uvicorn

from api.http.balance import ConnectionCounts

ACCEPT_PAUSE = 0.001  # seconds
RETRY = 1.0  # seconds to wait where no connection can be taken: too many open files, no memory
# Seconds for clients to send the next request of a connection, and be told. A client that pauses longer finds its
# connection closed while it was idle, as after any five seconds without a request.
LINGER = 2.0
LOOK = 0.05  # seconds between two looks at the connections

log = logging.getLogger(__name__)


def install() -> None:
    """Make uvicorn's servers of this process such a server; to be called before one is made."""
    uvicorn.Server = Server  # type: ignore[misc]  # BentoML makes it by this name


class Server(uvicorn.Server):
    """What BentoML's worker runs: it is given the listening socket that all workers have."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._counts = ConnectionCounts(os.environ, bentoml.server_context.worker_index)
        self.server_state.connections = Connections(self._counts)
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then take connections.

        Raises: SystemExit where the application doesn't start.
        """
        await super().startup(sockets=[])
        self._loop = asyncio.get_running_loop()
        self.servers: list[Any] = [Acceptor(self, each, self._counts) for each in sockets or ()]

    def protocol(self) -> asyncio.Protocol:
        """What speaks with one new connection."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=self._loop
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End gently, however often it is told: a supervisor may tell all processes, and then the parent its workers.

        Python calls it between any two steps of the main thread.
        """
        if self.started and not self.should_exit:
            self._loop.call_soon_threadsafe(self._begin_to_end, sig)
        else:
            super().handle_exit(sig, frame)

    def _begin_to_end(self, sig: int) -> None:
        if self._ending is None:
            self._ending = self._loop.create_task(self._end(sig), name="ending")

    async def _end(self, sig: int) -> None:
        for listening in self.servers:
            listening.close()
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)  # uvicorn makes the default headers anew every second
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        deadline = time.monotonic() + LINGER
        await asyncio.sleep(LOOK)  # what was accepted a moment ago becomes a connection
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(LOOK)
        super().handle_exit(sig, None)


class Connections(set[Any]):
    """uvicorn's set of those that are open; the other workers see how many."""

    def __init__(self, counts: ConnectionCounts) -> None:
        super().__init__()
        self._counts = counts
        self.accepts = False
        self.coming = 0  # accepted, but not in the set yet

    def add(self, connection: Any) -> None:
        super().add(connection)
        self.tell()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self.tell()

    def tell(self) -> None:
        if self.accepts:
            self._counts.put(len(self) + self.coming)


class Acceptor:
    """Takes connections from a listening socket; in uvicorn's eyes an `asyncio.Server`."""

    def __init__(self, server: Server, listening: socket.socket, counts: ConnectionCounts) -> None:
        self._server, self._listening, self._counts = server, listening, counts
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._connections: Connections = server.server_state.connections  # type: ignore[assignment]
        listening.setblocking(False)
        listening.listen(server.config.backlog)
        self._connections.accepts = True
        self._connections.tell()
        self._loop.add_reader(listening, self._ready)

    def close(self) -> None:
        """Take none from now on."""
        self._connections.accepts = False
        self._counts.leave()
        self._loop.remove_reader(self._listening)
        if self._timer:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for after `close`."""

    def _ready(self) -> None:
        if self._counts.is_others_turn():
            self._pause(ACCEPT_PAUSE)
        else:
            self._accept()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listening, self._ready)
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker has it; the client is gone
            return
        except OSError as error:
            if error.errno == errno.EINVAL:  # the parent has shut the socket down: the service ends
                self.close()
            else:
                log.error("no connection can be taken: %s; the next try is in %.0f s", error, RETRY)
                self._pause(RETRY)
            return
        ssl = self._server.config.ssl
        made = self._loop.connect_accepted_socket(self._server.protocol, connection, ssl=ssl)
        self._connections.coming += 1
        self._connections.tell()
        self._loop.create_task(made).add_done_callback(self._made)

    def _made(self, task: "asyncio.Task[Any]") -> None:
        self._connections.coming -= 1
        self._connections.tell()
        if not task.cancelled() and (error := task.exception()):
            log.info("a connection was not made: %s", error)
