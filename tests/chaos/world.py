"""The stack that faults break: a private MariaDB, services, and MLflow if a fault needs it."""

import resource
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pymysql

from pipelines.spec import find_spec
from stack.programs.health import answers
from stack.programs.processes import end
from stack.programs.program_list import mlflow_program
from stack.programs.starting import wait_for_process
from tests.chaos.accounts import Run
from tests.chaos.instance import Instance
from tests.chaos.traffic import RecordedTraffic
from tests.servers import free_port
from tests.services import OwnMariaDB, Service, make_service, own_mariadb, wait_for
from utils.settings import Settings
from utils.version import ROOT

SECONDS_BEFORE, SECONDS_AFTER = 2.0, 3.0  # of traffic before a fault and after its repair
FIRST_VERSION = 100  # of the shared instance; greater than all numbers that MLflow assigns
OPEN_FILES = 8_192  # limit for this process, because many connections wait while a service starts


class FaultWithoutEffect(Exception):
    """The fault did not have the intended effect, so its account would show nothing."""


class FaultSkipped(Exception):
    """The fault can't be run on this machine. The message is the reason."""


def require(condition: object, message: str) -> None:
    """Raises: FaultWithoutEffect with `message` if `condition` is false."""
    if not condition:
        raise FaultWithoutEffect(message)


@dataclass(slots=True)
class ChaosStack:
    """The parts that faults break.

    server: the private MariaDB.
    folder: the folder for the files of services and MLflow.
    is_short: whether traffic before and after a fault is shorter, for tests.
    run: the run of the current fault. None before its traffic starts.
    instances: all services that were added so far.
    """

    server: OwnMariaDB
    folder: Path
    is_short: bool = False
    run: Run | None = None
    instances: list[Instance] = field(default_factory=list)
    _shared_instance: Instance | None = None
    _newest_version: int = FIRST_VERSION
    _mlflow: psutil.Popen | None = None
    _mlflow_port: int = field(default_factory=free_port)

    @property
    def settings(self) -> Settings:
        return self.server.settings.model_copy(update={"mlflow_port": self._mlflow_port})

    def add_instance(
        self, name: str, *, workers: int = 2, folder: str = "", environment: Mapping[str, str] | None = None
    ) -> Instance:
        """Add a service of the model `name`. It has no version and does not run yet. Its files are in `folder`."""
        parent = self.folder / folder
        parent.mkdir(exist_ok=True)
        service = make_service(self.settings, parent, name, workers=workers, mlflow_port=self._mlflow_port)
        instance = Instance(service, environment or {})
        self.instances.append(instance)
        return instance

    def shared_instance(self) -> Instance:
        """Return the service that most faults share. It has two workers and is ready."""
        if self._shared_instance is None:
            self._shared_instance = self.add_instance("chaos")
            self._shared_instance.service.deploy(FIRST_VERSION, self._shared_instance.service.store(FIRST_VERSION))
        if self._shared_instance.process is None or self._shared_instance.process.poll() is not None:
            self._shared_instance.start()
        else:
            self._shared_instance.wait_until_complete()
        return self._shared_instance

    def repair(self) -> None:
        """Start MariaDB if necessary and stop all services, after a fault that ended early."""
        self.server.thaw()
        if self.server.process is None or self.server.process.poll() is not None:
            self.server.start()
        for instance in self.instances:
            instance.end()

    def forget_run(self) -> None:
        """Forget the run of the previous fault."""
        self.run = None

    def new_version(self) -> int:
        """Return the number of a new version."""
        self._newest_version += 1
        return self._newest_version

    @contextmanager
    def send_traffic(self, service: Service, *, port: int = 0) -> Iterator[Run]:
        """Send traffic to `service`, or to a proxy at `port`, during the block and some seconds before and after it."""
        self.run = Run(service, RecordedTraffic(port or service.port, service.row, service.spec.entity))
        with self.run.traffic:
            time.sleep(1 if self.is_short else SECONDS_BEFORE)
            yield self.run
            time.sleep(1 if self.is_short else SECONDS_AFTER)

    def count_spooled_rows(self, instance: Instance) -> int:
        """Return the number of rows in the spools of all workers of `instance`."""
        rows = 0
        for file in instance.service.settings.spool.glob("*/*.db"):
            try:
                with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
                    rows += connection.execute("SELECT COUNT(*) FROM spooled").fetchone()[0]
            except sqlite3.OperationalError:  # the file was deleted, or does not have its table yet
                continue
        return rows

    def wait_for_spool(self, instance: Instance) -> None:
        """Wait until a worker of `instance` has spooled a row, which it does while MariaDB does not answer."""
        wait_for("rows in a spool", lambda: self.count_spooled_rows(instance))

    @contextmanager
    def root_cursor(self) -> Iterator["pymysql.cursors.Cursor"]:
        """Provide a cursor of the user root, who can connect even when the connection limit is reached."""
        settings = self.settings
        connection = pymysql.connect(
            host="127.0.0.1",
            port=settings.mariadb_port,
            user="root",
            password=settings.db_password("root"),
            database="evergreen",
            autocommit=True,
        )
        with connection, connection.cursor() as cursor:
            yield cursor

    def start_mlflow(self) -> None:
        """Start MLflow as `make up` does. A second start, after `kill_mlflow`, uses the same data and port."""
        program = mlflow_program(self.settings)
        launch = program.launch()
        log = self.folder / "mlflow.log"
        with log.open("ab") as output:
            self._mlflow = psutil.Popen(
                launch.argv, env=dict(launch.environment), stdout=output, stderr=output, start_new_session=True
            )
        wait_for_process("MLflow", self._mlflow, lambda: answers(program.health), log=log)

    def kill_mlflow(self) -> None:
        if self._mlflow is not None:
            processes = [self._mlflow, *self._mlflow.children(recursive=True)]
            for process in processes:
                process.kill()
            end(processes, seconds=0)
            self._mlflow = None

    def close(self) -> None:
        """End MLflow and all services."""
        self.kill_mlflow()
        for instance in self.instances:
            instance.end()


@contextmanager
def run_chaos_stack(*, is_short: bool = False) -> Iterator[ChaosStack]:
    """Provide a new stack until the end of the block. Its processes and files are removed at the end."""
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    new_limit = min(OPEN_FILES, hard_limit) if soft_limit < OPEN_FILES else soft_limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard_limit))
    spec = find_spec(ROOT / "models", "credit_score")
    with tempfile.TemporaryDirectory(prefix="chaos") as folder, own_mariadb([spec.store]) as server:
        stack = ChaosStack(server, Path(folder), is_short=is_short)
        try:
            yield stack
        finally:
            stack.close()
