"""Connections that nobody can hold open for nothing: uvicorn's own have no deadline for a request to arrive.

Cut off is a client that connects and says nothing, sends its headers a byte at a time, goes on sending after it was
refused, or does not read its answer. Requests whose headers are here have `Guard`'s deadline.
"""

import asyncio
import json
import re
import resource

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

ARRIVAL = 10.0  # seconds for a request to arrive, and for an answer to be taken
MAX_HEAD = 65_536  # bytes of a request line and its headers
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
OPEN_FILES = 65_536  # of a worker, where the system allows so many: slow clients must not use up its connections


def install() -> None:
    """Make uvicorn use `Connection` in this process; to be called before its server starts."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"  # BentoML passes no choice on
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class Connection(HttpToolsProtocol):
    """One client's connection. A single timer looks at it now and then, so that a request costs no timer of its own."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.ws_protocol_class = None  # nothing here speaks WebSocket
        self._since = self.loop.time()  # the first byte of what arrives, or the end of the last answer
        self._whole = True  # no request is under way
        self._head = -1  # bytes of a head that is not whole yet
        self._unread_since: float | None = None
        self._timer = self.loop.call_later(ARRIVAL, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._whole and b"pgrade" in data:  # Java's client asks for HTTP/2; the parser would then skip the body
            head, end, rest = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(b"", head) + end + rest
        super().data_received(data)
        if self._head >= 0:
            self._head += len(data)
            if self._head > MAX_HEAD and not self.transport.is_closing():
                self._refuse(431, f"the headers are larger than {MAX_HEAD // 1024} KiB")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._since, self._whole, self._head = self.loop.time(), False, 0

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._whole = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._whole:  # else it was refused before it was here, and the rest must still arrive in time
            self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP request")

    def _unsupported_upgrade_warning(self) -> None:
        """Not worth a line in the log: the request is answered as if it had not asked."""

    def _look(self) -> None:
        now, wait = self.loop.time(), 1.0
        unread = self._unread_since is not None and now - self._unread_since >= ARRIVAL
        if unread or self.transport.is_closing():  # closed before, but what it was told is still not taken
            self.transport.abort()
            return
        if self.cycle is None or self.cycle.response_complete:  # a request that is being answered is the guard's
            wait = self._since + ARRIVAL - now
        if wait <= 0:
            if self._head >= 0:
                self._refuse(408, f"the headers did not arrive within {ARRIVAL:.0f} s")
            self.transport.close()
            wait = ARRIVAL
        self._timer = self.loop.call_later(wait, self._look)

    def _refuse(self, status: int, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content)
        self.transport.write(STATUS_LINE[status] + head + content)
        self.transport.close()
