"""How a worker ends without dropping anybody.

uvicorn closes every connection without a request at work as soon as it is told to end; a client whose request is just
on its way then sees a reset. So a worker first stops accepting: its listening socket is the service's, new connections
wait there for the other workers or the one that comes in its place. It answers what its open connections still ask,
each time with `Connection: close`, and ends once they are gone.
"""

import asyncio
import signal
import time

import uvicorn

# Seconds for clients to send the next request of a connection, and be told. A client that pauses longer finds its
# connection closed while it was idle, as after any five seconds without a request.
LINGER = 2.0
LOOK = 0.05  # seconds between two looks at the connections
CLOSE = (b"connection", b"close")


def end_gently() -> None:
    """From now on SIGTERM ends this worker gently; called on its event loop. Other servers than uvicorn stay as is."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)  # uvicorn gives it to nobody
    if isinstance(server, uvicorn.Server):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _Ending(server).begin)


class _Ending:
    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._end(), name="ending")

    async def _end(self) -> None:
        for listening in getattr(self._server, "servers", ()):
            listening.close()
        state = self._server.server_state
        self._server.config.encoded_headers.append(CLOSE)  # uvicorn makes the default headers anew every second
        state.default_headers = [*state.default_headers, CLOSE]
        deadline = time.monotonic() + LINGER
        await asyncio.sleep(LOOK)  # what was accepted a moment ago becomes a connection
        while state.connections and time.monotonic() < deadline:
            await asyncio.sleep(LOOK)
        self._server.handle_exit(signal.SIGTERM, None)
