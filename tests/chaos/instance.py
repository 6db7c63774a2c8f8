"""One running service whose processes can be stopped, killed and started again, each known by the mark it carries."""

import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
from sqlalchemy import RowMapping

from stack.programs.processes import is_alive, ours
from stack.programs.program import base_environment
from stack.programs.starting import wait_for_end
from tests.chaos.accounts import Killed
from tests.services import Service, wait_for

STOP_SECONDS = 60.0  # until it is killed


@dataclass(slots=True)
class Instance:
    """`environment` is given to its processes besides what they need."""

    service: Service
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        marked = base_environment(self.service.settings)
        self.process = self.service.launch(**{**marked, **self.environment})
        self.wait()

    def wait(self) -> None:
        """Wait until it is ready, with as many workers as it should have."""
        wait_for("a ready service", self.is_whole)

    def is_whole(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the service ended:\n{self.service.log.read_text()[-2000:]}")
        serving = [row for row in self.heartbeats() if row["version"]]
        return len(serving) == self.service.settings.serving_workers and self.service.is_ready()

    def heartbeats(self) -> list[RowMapping]:
        """The rows of its living workers."""
        alive = {worker.pid for worker in self.workers()}
        return [row for row in self.service.workers() if row["pid"] in alive]

    def wait_for_version(self, version: int) -> None:
        """Wait until every worker serves `version`."""
        wait_for(f"version {version}", lambda: {row["version"] for row in self.heartbeats()} == {version})

    def stop(self) -> None:
        """End it as its users do, with SIGTERM."""
        assert self.process is not None
        self.process.terminate()
        wait_for_end("the service", self.process, log=self.service.log)
        wait_for("the end of its workers", lambda: not ours(self.service.settings))

    def workers(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        found = []
        for process in ours(self.service.settings):
            try:
                if "--worker-id" in process.cmdline():
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return sorted(found, key=lambda process: process.pid)

    def kill_worker(self) -> Killed:
        """SIGKILL one of the workers; frozen first, so that its connections are known exactly."""
        worker = self.workers()[0]
        worker.suspend()
        ports = frozenset(link.raddr.port for link in worker.net_connections("tcp") if link.raddr)
        return self._killed([worker], ports)

    def kill(self) -> Killed:
        """SIGKILL everything at once: who is left alone has no time to do anything about it."""
        processes = ours(self.service.settings)
        for process in processes:
            process.suspend()
        return self._killed(processes, None)

    def end(self) -> None:
        """Whatever is left of it is gone afterwards."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        for process in ours(self.service.settings):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait()

    def _killed(self, processes: list[psutil.Process], ports: frozenset[int] | None) -> Killed:
        for process in processes:
            process.kill()
        if self.process is not None and self.process.pid in {process.pid for process in processes}:
            self.process.wait()
        wait_for("their end", lambda: not any(map(is_alive, processes)))
        return Killed(time.monotonic(), ports)
