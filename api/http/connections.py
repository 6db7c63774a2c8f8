"""Connections with a deadline for a request to arrive. uvicorn's own connections have no deadline.

A client is disconnected if it sends nothing, sends its headers a byte at a time, keeps sending after a refusal, or does
not read its response. Once the headers have arrived, the deadline of `Guard` applies to the request.
"""

import asyncio
import json
import re
import resource

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

ARRIVAL = 10.0  # seconds for a request to arrive, and for a client to read its response
MAX_HEAD = 65_536  # bytes of a request line and its headers
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
OPEN_FILES = 65_536  # of a worker, if the system allows it: slow clients must not use up its connections


def install() -> None:
    """Make uvicorn use `Connection` in this process. Call it before uvicorn's server starts."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"  # BentoML has no option for this
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class Connection(HttpToolsProtocol):
    """One client's connection. A single timer checks it from time to time, so that requests need no timer each."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.ws_protocol_class = None  # the service has no WebSocket
        self._since = self.loop.time()  # first byte of the request that arrives, or end of the last response
        self._is_complete = True  # no part of a request is missing
        self._head_bytes = -1  # bytes of a head that has arrived in part; -1 between heads
        self._unread_since: float | None = None
        self._timer = self.loop.call_later(ARRIVAL, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_complete and b"pgrade" in data:  # Java's client asks for HTTP/2: the parser would skip the body
            head, end, rest = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(b"", head) + end + rest
        super().data_received(data)
        if self._head_bytes >= 0:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self._refuse(431, f"the headers are larger than {MAX_HEAD // 1024} KiB")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._since, self._is_complete, self._head_bytes = self.loop.time(), False, 0

    def on_headers_complete(self) -> None:
        self._head_bytes = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_complete = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._is_complete:  # else the request was refused early, and its rest must still arrive in time
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
        """Log nothing. The request is answered as if it had not asked for an upgrade."""

    def _look(self) -> None:
        now, wait = self.loop.time(), 1.0
        unread = self._unread_since is not None and now - self._unread_since >= ARRIVAL
        if unread or self.transport.is_closing():  # closing, and the client still has not read the response
            self.transport.abort()
            return
        if self.cycle is None or self.cycle.response_complete:  # else `Guard` has the deadline
            wait = self._since + ARRIVAL - now
        if wait <= 0:
            if self._head_bytes >= 0:
                self._refuse(408, f"the headers did not arrive within {ARRIVAL:.0f} s")
            self.transport.close()
            wait = ARRIVAL
        self._timer = self.loop.call_later(wait, self._look)

    def _refuse(self, status: int, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content)
        self.transport.write(STATUS_LINE[status] + head + content)
        self.transport.close()
