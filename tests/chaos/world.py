"""The environment of all faults: a private MariaDB, services, and MLflow if a fault needs it."""

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
from tests.chaos.traffic import Traffic
from tests.servers import free_port
from tests.services import OwnMariaDB, Service, make_service, own_mariadb, wait_for
from utils.settings import Settings
from utils.version import ROOT

BEFORE, AFTER = 2.0, 3.0  # seconds of traffic before a fault and after its repair
FIRST = 100  # number of the first version of the usual service, above the numbers that MLflow assigns
FILES = 8_192  # open files: while a service starts, its clients' connections pile up


class Unfit(Exception):
    """A fault did not have its effect, so its row would prove nothing."""


class Skip(Exception):
    """A fault can't be run on this machine. The message is the reason."""


def need(condition: object, what: str) -> None:
    """Raises: Unfit with `what` if `condition` is false."""
    if not condition:
        raise Unfit(what)


@dataclass(slots=True)
class World:
    """The parts that faults break.

    folder: the folder for files of services.
    short: shorter traffic before and after a fault, for tests.
    run: the current run, or the last one.
    """

    server: OwnMariaDB
    folder: Path
    short: bool = False
    run: Run | None = None
    instances: list[Instance] = field(default_factory=list)
    _usual: Instance | None = None
    _versions: int = FIRST
    _mlflow: psutil.Popen | None = None
    _mlflow_port: int = field(default_factory=free_port)

    @property
    def settings(self) -> Settings:
        return self.server.settings.model_copy(update={"mlflow_port": self._mlflow_port})

    def instance(
        self, name: str, *, workers: int = 2, folder: str = "", environment: Mapping[str, str] | None = None
    ) -> Instance:
        """Add a service of the model `name`, without a version and not running yet. Its home is in `folder`."""
        parent = self.folder / folder
        parent.mkdir(exist_ok=True)
        service = make_service(self.settings, parent, name, workers=workers, mlflow_port=self._mlflow_port)
        instance = Instance(service, environment or {})
        self.instances.append(instance)
        return instance

    def usual(self) -> Instance:
        """The service that most faults share, with two workers, ready."""
        if self._usual is None:
            self._usual = self.instance("chaos")
            self._usual.service.deploy(FIRST, self._usual.service.store(FIRST))
        if self._usual.process is None or self._usual.process.poll() is not None:
            self._usual.start()
        else:
            self._usual.wait()
        return self._usual

    def mend(self) -> None:
        """Repair the world after a fault that ended early. MariaDB runs and all services are stopped afterwards."""
        self.server.thaw()
        if self.server.process is None or self.server.process.poll() is not None:
            self.server.start()
        for instance in self.instances:
            instance.end()

    def forget_run(self) -> None:
        """Forget the run of the fault before."""
        self.run = None

    def new_version(self) -> int:
        """Return a number that no version has yet."""
        self._versions += 1
        return self._versions

    @contextmanager
    def traffic(self, service: Service, *, port: int = 0) -> Iterator[Run]:
        """Send traffic to `service`, or to the proxy at `port`, from BEFORE the block until AFTER it."""
        self.run = Run(service, Traffic(port or service.port, service.row, service.spec.entity))
        with self.run.traffic:
            time.sleep(1 if self.short else BEFORE)
            yield self.run
            time.sleep(1 if self.short else AFTER)

    def spooled(self, instance: Instance) -> int:
        """The number of rows in the spools of the instance's workers."""
        rows = 0
        for file in instance.service.settings.spool.glob("*/*.db"):
            try:
                with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as link:
                    rows += link.execute("SELECT COUNT(*) FROM spooled").fetchone()[0]
            except sqlite3.OperationalError:  # already deleted, or without its table yet
                continue
        return rows

    def wait_for_spool(self, instance: Instance) -> None:
        """Wait until the instance's workers have spooled a row. They do once MariaDB does not answer."""
        wait_for("rows in a spool", lambda: self.spooled(instance))

    @contextmanager
    def admin(self) -> Iterator["pymysql.cursors.Cursor"]:
        """A cursor of root, which can connect even at the connection limit."""
        settings = self.settings
        link = pymysql.connect(
            host="127.0.0.1",
            port=settings.mariadb_port,
            user="root",
            password=settings.db_password("root"),
            database="evergreen",
            autocommit=True,
        )
        with link, link.cursor() as cursor:
            yield cursor

    def start_mlflow(self) -> None:
        """Start MLflow like the product does. After `kill_mlflow` it has the same data and port."""
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
        self.kill_mlflow()
        for instance in self.instances:
            instance.end()


@contextmanager
def make_world(*, short: bool = False) -> Iterator[World]:
    """Run a new world until the end of the block. Nothing of it is left afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard) if soft < FILES else soft, hard))
    spec = find_spec(ROOT / "models", "credit_score")
    with tempfile.TemporaryDirectory(prefix="chaos") as folder, own_mariadb([spec.store]) as server:
        world = World(server, Path(folder), short=short)
        try:
            yield world
        finally:
            world.close()
