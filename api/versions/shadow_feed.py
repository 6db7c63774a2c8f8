"""The challenger that scores what was answered once more, off the client's path: `evergreen shadow MODEL VERSION`.

It lives in a process of its own (`api.versions.challenger`) that runs only when nothing else wants the processor: in a
thread of the worker it would hold the interpreter's lock while requests wait. Rows go there through a socket that
nobody waits for. Its buffer is the queue: rows that find it full are dropped, and counted.
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

BUFFER = 4_000_000  # bytes asked for; the system may give less
MESSAGE = 50_000  # characters of rows that are sent at once
ID, ENTITY, FEATURES = 0, 4, 5  # places in a row of the log (`db.log.writing.LOG_COLUMNS`)

log = logging.getLogger(__name__)


def challenger_command(model: str, wanted: Deployment, instance_id: UUID, descriptor: int) -> list[str]:
    """What scores in the shadow; `descriptor` is its end of the socket that rows come through."""
    program = [sys.executable, "-m", "api.versions.challenger"]
    return [*program, model, str(wanted.version), wanted.sha256, str(instance_id), str(descriptor)]


class Shadow:
    """One worker's challenger. `follow` is for the thread that polls, `offer` for the event loop.

    counts: rows sent to it, dropped on the way, and what it says of the others: scored, refused, unlogged.
    """

    def __init__(self, spec: ModelSpec, instance_id: UUID) -> None:
        self.counts: Counter[str] = Counter()
        self.version: int | None = None  # that scores; None while there is none, or it is not ready
        self.refusal: str | None = None
        self._spec, self._instance_id = spec, instance_id
        self._wanted: Deployment | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        # Rows wait here for each other, up to a second. Each message wakes the challenger, and each time it has run the
        # processor's caches are full of it: whoever is asked next takes a millisecond longer.
        self._lock = threading.Lock()  # of the next two
        self._lines: list[str] = []
        self._size = 0  # characters
        self._not_before, self._pause = 0.0, FIRST_PAUSE

    def follow(self, wanted: Deployment | None) -> None:
        """Make `wanted` the challenger, None for no one; called about once a second."""
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
        self._hear()
        if self._process.poll() is not None:  # it has refused, or died
            said = self.refusal or f"its process ended with code {self._process.returncode}"
            log.warning("%s version %d in the shadow: %s", self._spec.name, wanted.version, said)
            self.stop()
            self.refusal = said
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def offer(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Hand over rows of the log that have been answered. Never waits, never raises."""
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
            process.kill()  # it holds nothing that anybody waits for
            process.wait()

    def _send(self) -> None:
        """What has been gathered, as one message."""
        with self._lock:
            lines, self._lines, self._size = self._lines, [], 0
        channel = self._channel
        if channel is None or not lines:
            return
        try:
            channel.send(f"[{','.join(lines)}]".encode())
            self.counts["sent"] += len(lines)
        except OSError:  # its buffer is full, or it is gone
            self.counts["dropped"] += len(lines)

    def _start(self, wanted: Deployment) -> None:
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = challenger_command(self._spec.name, wanted, self._instance_id, theirs.fileno())
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        give_way(self._process.pid)
        channel.setblocking(False)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        channel.send(json.dumps(self._spec.to_json()).encode())
        self._channel = channel

    def _hear(self) -> None:
        """What the challenger told since the last look: that it is ready, why it is not, what it did."""
        with suppress(OSError):
            while self._channel is not None and (said := self._channel.recv(65536)):
                told = json.loads(said)
                self.refusal = told.get("refused")
                if told.get("ready") and self._wanted is not None:
                    self.version = self._wanted.version
                    log.info("%s: version %d scores in the shadow", self._spec.name, self.version)
                self.counts.update(told.get("counts", {}))
