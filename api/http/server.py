"""A worker's HTTP server: uvicorn's, with a fair share of the connections and a shutdown that drops no request.

*Share.* All workers accept from one socket, and the first worker to wake up takes the connection. One worker could take
all long-lived connections. So a worker with more than twice as many connections as another one waits for a millisecond
before it accepts. It then takes the connection if nobody has: the other worker may be busy or gone.

*Shutdown.* uvicorn closes idle connections as soon as it receives the signal. A client whose request is on its way then
sees a reset. So a worker first stops accepting: new connections wait in the socket for the other workers or the
replacement. The worker answers the requests of its open connections with `Connection: close`, and ends once all of them
are closed.
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
RETRY = 1.0  # seconds to wait if accepting fails: too many open files, no memory
# Seconds in which clients send the next request of a connection and get `Connection: close`. A client that pauses
# longer finds its idle connection closed. The same happens after any five seconds without a request.
LINGER = 2.0
LOOK = 0.05  # seconds between two checks of the open connections

log = logging.getLogger(__name__)


def install() -> None:
    """Replace uvicorn's server class in this process. Call it before BentoML makes a server."""
    uvicorn.Server = Server  # type: ignore[misc]  # BentoML looks the class up by this name


class Server(uvicorn.Server):
    """The server of a BentoML worker. All workers share its listening socket."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._counts = ConnectionCounts(os.environ, bentoml.server_context.worker_index)
        self.server_state.connections = Connections(self._counts)
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections.

        Raises: SystemExit if the application doesn't start.
        """
        await super().startup(sockets=[])
        self._loop = asyncio.get_running_loop()
        self.servers: list[Any] = [Acceptor(self, listening, self._counts) for listening in sockets or ()]

    def protocol(self) -> asyncio.Protocol:
        """The protocol of one new connection."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=self._loop
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down gracefully. Repeated signals change nothing.

        A supervisor may signal all processes, and then the parent signals its workers again. Python calls this handler
        between any two instructions of the main thread.
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
        self.config.encoded_headers.append(close)  # uvicorn rebuilds the default headers every second
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        deadline = time.monotonic() + LINGER
        await asyncio.sleep(LOOK)  # sockets accepted a moment ago become connections
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(LOOK)
        super().handle_exit(sig, None)


class Connections(set[Any]):
    """uvicorn's set of open connections. It publishes its size to the other workers."""

    def __init__(self, counts: ConnectionCounts) -> None:
        super().__init__()
        self._counts = counts
        self.accepts = False
        self.coming = 0  # accepted sockets that are not in the set yet

    def add(self, connection: Any) -> None:
        super().add(connection)
        self.publish()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self.publish()

    def publish(self) -> None:
        """Write the number of connections to the shared memory, unless this worker has stopped accepting."""
        if self.accepts:
            self._counts.put(len(self) + self.coming)


class Acceptor:
    """Accept connections from a listening socket. uvicorn uses it like an `asyncio.Server`."""

    def __init__(self, server: Server, listening: socket.socket, counts: ConnectionCounts) -> None:
        self._server, self._listening, self._counts = server, listening, counts
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._connections: Connections = server.server_state.connections  # type: ignore[assignment]
        listening.setblocking(False)
        listening.listen(server.config.backlog)
        self._connections.accepts = True
        self._connections.publish()
        self._loop.add_reader(listening, self._ready)

    def close(self) -> None:
        """Stop accepting connections."""
        self._connections.accepts = False
        self._counts.leave()
        self._loop.remove_reader(self._listening)
        if self._timer:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Return at once: `close` leaves nothing to wait for."""

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
        except (BlockingIOError, ConnectionAbortedError):  # another worker took it; the client disconnected
            return
        except OSError as error:
            if error.errno == errno.EINVAL:  # the parent has shut the socket down: the service ends
                self.close()
            else:
                log.error("no connection can be taken: %s; retrying in %.0f s", error, RETRY)
                self._pause(RETRY)
            return
        ssl = self._server.config.ssl
        connecting = self._loop.connect_accepted_socket(self._server.protocol, connection, ssl=ssl)
        self._connections.coming += 1
        self._connections.publish()
        self._loop.create_task(connecting).add_done_callback(self._on_connected)

    def _on_connected(self, task: "asyncio.Task[Any]") -> None:
        self._connections.coming -= 1
        self._connections.publish()
        if not task.cancelled() and (error := task.exception()):
            log.info("a connection failed: %s", error)
