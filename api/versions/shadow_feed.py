"""The feed of a challenger, which scores answered rows again, off the client's path: `evergreen shadow MODEL VERSION`.

The challenger is a separate process (`api.versions.challenger`) of the lowest priority. In a thread of the worker it
would hold the interpreter's lock while requests wait. Rows reach it through a socket that nothing waits for. The
socket's buffer is the queue. If the buffer is full, rows are dropped and counted.
"""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from api.versions.fetching import FIRST_PAUSE, LONGEST_PAUSE
from db.history.heartbeats import Deployment
from pipelines.spec import ModelSpec
from utils.priority import give_way

BUFFER = 4_000_000  # requested bytes; the system may grant fewer
MESSAGE = 50_000  # characters of rows that are sent at once
ID, ENTITY, FEATURES = 0, 4, 5  # places in a row of the log (`db.log.writing.LOG_COLUMNS`)

log = logging.getLogger(__name__)


def challenger_command(model: str, wanted: Deployment, instance_id: UUID, descriptor: int) -> list[str]:
    """The command of the challenger. `descriptor` is its end of the socket that brings the rows."""
    program = [sys.executable, "-m", "api.versions.challenger"]
    return [*program, model, str(wanted.version), wanted.sha256, str(instance_id), str(descriptor)]


class Shadow:
    """One worker's challenger. The polling thread calls `follow`, the event loop calls `offer`.

    counts: rows sent and dropped by this worker; rows scored, refused and unlogged by the challenger.
    version: the version that scores. None if there is no challenger or it is not ready.
    refusal: why the challenger can't score, or None.
    """

    def __init__(self, spec: ModelSpec, instance_id: UUID) -> None:
        self.counts: Counter[str] = Counter()
        self.version: int | None = None
        self.refusal: str | None = None
        self._spec, self._instance_id = spec, instance_id
        self._wanted: Deployment | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        # Rows are gathered for up to a second. Each message wakes the challenger, which then fills the processor's
        # caches: the next request takes a millisecond longer.
        self._lock = threading.Lock()  # guards `_lines` and `_size`
        self._lines: list[str] = []
        self._size = 0  # characters
        self._not_before, self._pause = 0.0, FIRST_PAUSE

    def follow(self, wanted: Deployment | None) -> None:
        """Make `wanted` the challenger, or stop it if None. Call it about once a second."""
        if wanted != self._wanted:
            self.stop()
            self._wanted, self.refusal = wanted, None
            self._not_before, self._pause = 0.0, FIRST_PAUSE
        if wanted is None:
            return
        if self._process is None:
            if time.monotonic() >= self._not_before:
                self._start(wanted)
            return
        self._send()
        self._receive()
        if self._process.poll() is not None:  # it has refused the version, or crashed
            reason = self.refusal or f"its process ended with code {self._process.returncode}"
            log.warning("%s version %d in the shadow: %s", self._spec.name, wanted.version, reason)
            self.stop()
            self.refusal = reason
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def offer(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take log rows whose answers are sent. It never waits and never raises."""
        if self.version is None:
            return
        for row in rows:
            line = f'["{row[ID]}",{json.dumps(row[ENTITY])},{row[FEATURES]}]'
            with self._lock:
                self._lines.append(line)
                self._size += len(line)
            if self._size >= MESSAGE:
                self._send()

    def stop(self) -> None:
        """End the challenger's process, if there is one."""
        process, channel = self._process, self._channel
        self._process = self._channel = self.version = None
        with self._lock:
            self._lines, self._size = [], 0
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()  # no client waits for its rows
            process.wait()

    def _send(self) -> None:
        """Send the gathered rows as one message."""
        with self._lock:
            lines, self._lines, self._size = self._lines, [], 0
        channel = self._channel
        if channel is None or not lines:
            return
        try:
            channel.send(f"[{','.join(lines)}]".encode())
            self.counts["sent"] += len(lines)
        except OSError:  # the buffer is full, or the challenger has ended
            self.counts["dropped"] += len(lines)

    def _start(self, wanted: Deployment) -> None:
        channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = challenger_command(self._spec.name, wanted, self._instance_id, far_end.fileno())
        with far_end:
            self._process = subprocess.Popen(
                command, pass_fds=[far_end.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        give_way(self._process.pid)
        channel.setblocking(False)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        channel.send(json.dumps(self._spec.to_json()).encode())
        self._channel = channel

    def _receive(self) -> None:
        """Read the challenger's new reports: that it is ready, why it is not, and its counts."""
        with suppress(OSError):
            while self._channel is not None and (message := self._channel.recv(65536)):
                report = json.loads(message)
                self.refusal = report.get("refused")
                if report.get("ready") and self._wanted is not None:
                    self.version = self._wanted.version
                    log.info("%s: version %d scores in the shadow", self._spec.name, self.version)
                self.counts.update(report.get("counts", {}))
