"""A service whose processes can be stopped, killed and started again.

The function `ours` recognizes these processes by the variables of `base_environment`.
"""

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
from tests.chaos.accounts import Kill
from tests.services import Service, wait_for

STOP_SECONDS = 60.0  # time between SIGTERM and SIGKILL


@dataclass(slots=True)
class Instance:
    """One service.

    environment: more variables for the processes of the service.
    process: the process that starts all others of the service. None before the first start.
    """

    service: Service
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        identifying_variables = base_environment(self.service.settings)
        self.process = self.service.launch(**{**identifying_variables, **self.environment})
        self.wait_until_complete()

    def wait_until_complete(self) -> None:
        """Wait until the service is ready and all its workers serve a version."""
        wait_for("a ready service", self.is_complete)

    def is_complete(self) -> bool:
        """Whether the service is ready and all its workers serve a version. Raises: RuntimeError if it has ended."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the service ended:\n{self.service.log.read_text()[-2000:]}")
        serving_rows = [row for row in self.heartbeats() if row["version"]]
        return len(serving_rows) == self.service.settings.serving_workers and self.service.is_ready()

    def heartbeats(self) -> list[RowMapping]:
        """Return the rows of the table `instance` for the workers that run."""
        running_pids = {worker.pid for worker in self.workers()}
        return [row for row in self.service.workers() if row["pid"] in running_pids]

    def wait_for_version(self, version: int) -> None:
        """Wait until every worker serves `version`."""
        wait_for(f"version {version}", lambda: {row["version"] for row in self.heartbeats()} == {version})

    def stop(self) -> None:
        """Stop the service with SIGTERM, and wait until all its processes have ended."""
        assert self.process is not None
        self.process.terminate()
        wait_for_end("the service", self.process, log=self.service.log)
        wait_for("the end of its workers", lambda: not ours(self.service.settings))

    def workers(self) -> list[psutil.Process]:
        """Return the processes that answer requests, ordered by process id."""
        workers = []
        for process in ours(self.service.settings):
            try:
                if "--worker-id" in process.cmdline():
                    workers.append(process)
            except psutil.NoSuchProcess:
                continue
        return sorted(workers, key=lambda process: process.pid)

    def kill_worker(self) -> Kill:
        """Kill one worker. It is suspended first, so that the list of its connections is exact."""
        worker = self.workers()[0]
        worker.suspend()
        ports = frozenset(connection.raddr.port for connection in worker.net_connections("tcp") if connection.raddr)
        return self._kill([worker], ports)

    def kill(self) -> Kill:
        """Kill all processes. They are suspended first, so that no process reacts to the end of another one."""
        processes = ours(self.service.settings)
        for process in processes:
            process.suspend()
        return self._kill(processes, None)

    def end(self) -> None:
        """Stop all processes that still run. Kill those that do not end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        for process in ours(self.service.settings):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait()

    def _kill(self, processes: list[psutil.Process], ports: frozenset[int] | None) -> Kill:
        for process in processes:
            process.kill()
        if self.process is not None and self.process.pid in {process.pid for process in processes}:
            self.process.wait()
        wait_for("the end of the killed processes", lambda: not any(map(is_alive, processes)))
        return Kill(time.monotonic(), ports)
