"""A real prediction service for tests: BentoML processes, a model in the Bento store, a log in MariaDB."""

import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml
from sqlalchemy import RowMapping, text

from api.launch import serve_command
from api.requests.row_type import example
from api.versions.bento_store import BentoStore
from db import history
from db.admin import bootstrap
from db.history import deployments
from db.session import session
from db.store.schema import StoreSchema
from db.tables import deployment
from pipelines.spec import ModelSpec, find_spec
from stack.programs import mariadb
from stack.programs.processes import work
from stack.programs.program import settings_environment
from stack.programs.starting import wait_for_end, wait_for_process
from tests.bundles import write_bundle
from tests.servers import free_port
from utils.clock import utc_now
from utils.patience import Patience
from utils.settings import Settings, inherited_environment, load_settings
from utils.version import ROOT

PROGRAM_PATIENCE = 120.0  # seconds without work in any child process
LONGEST = 1800.0  # seconds: clients of a test keep programs busy even without progress
ROLES = ("admin", "loader", "pipeline", "api", "reader", "mlflow", "maintenance")


def wait_for[T](what: str, look: Callable[[], T | None]) -> T:
    """Return the first true value of `look`. Raises: GaveUp once no child process works any more."""

    def sign() -> object:
        return work(*(child.pid for child in psutil.Process().children()))

    return Patience(what, sign, seconds=PROGRAM_PATIENCE, longest=LONGEST).until(look)


def spec_like_credit_score(name: str, folder: Path, **features: dict[str, Any]) -> ModelSpec:
    """Write credit_score under another name into `folder`, with `features` added to its columns."""
    file = yaml.safe_load((ROOT / "models" / "credit_score.yaml").read_text())
    file["name"] = name
    file["features"]["columns"] |= features
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(file))
    return find_spec(folder, name)


@dataclass
class OwnMariaDB:
    """A server that can be stopped, frozen and started again. Its configuration is the product's."""

    settings: Settings
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.settings.home / "mariadb.log"

    def start(self) -> None:
        root_password = self.settings.db_password("root")
        mariadb.initialise(mariadb.data_folder(self.settings), root_password=root_password)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                mariadb.command(self.settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its own share of the processors (sched(7), autogroup)
            )
        wait_for_process("MariaDB", self.process, lambda: mariadb.root_signs_in(self.settings), log=self.log)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        wait_for_end("MariaDB", self.process, log=self.log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def own_mariadb(schemas: Sequence[StoreSchema], *, today: date | None = None) -> Iterator[OwnMariaDB]:
    """Run a migrated server in its own folder until the end of the block. `today` determines its partitions."""
    with tempfile.TemporaryDirectory(prefix="eg") as folder:
        home = Path(folder)
        settings = load_settings(
            home=home,
            env_file=home / ".env",
            models_dir=ROOT / "models",
            mariadb_host="",
            mariadb_port=free_port(),
            mariadb_root_password=secrets.token_hex(16),
            api_key="",
            **{f"db_{role}_password": secrets.token_hex(16) for role in ROLES},
        )
        server = OwnMariaDB(settings)
        server.start()
        try:
            bootstrap.create_databases_and_users(settings)
            bootstrap.migrate(settings, schemas, today=today)
            yield server
        finally:
            server.thaw()
            server.stop()


@dataclass
class Service:
    """The service of `spec`, running or not."""

    settings: Settings
    spec: ModelSpec
    port: int
    log: Path

    @property
    def bento_store(self) -> BentoStore:
        return BentoStore(self.settings, self.spec.name)

    @property
    def row(self) -> dict[str, Any]:
        return example(self.spec)

    def post(
        self, path: str, body: Any, *, key: str = "", headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        all_headers = {**(headers or {}), **({"Authorization": f"Bearer {key}"} if key else {})}
        return requests.post(f"http://127.0.0.1:{self.port}{path}", json=body, headers=all_headers, timeout=20)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=20)

    def predict(self, **values: Any) -> requests.Response:
        return self.post("/predict", {"data": {**self.row, **values}})

    def bundle(self, version: int) -> Path:
        """The folder into which `store` writes the bundle of `version`."""
        return self.settings.home / f"{self.spec.name}-{version}-bundle"

    def store(self, version: int, *, seed: int = 1, spec: ModelSpec | None = None) -> str:
        """Train a bundle, put it into the Bento store and return its SHA-256."""
        folder = self.bundle(version)
        sha256 = write_bundle(spec or self.spec, folder, seed=seed)
        self.bento_store.put(version, folder, tags={"run_id": f"run-{version}"})
        return sha256

    def deploy(self, version: int, sha256: str) -> None:
        row = {"model": self.spec.name, "action": "deploy", "version": version, "artifact_sha256": sha256}
        with session(self.settings, "pipeline") as connection:
            provenance = {"caused_by": "test", "reason": "test", "created_at": utc_now()}
            history.add(connection, deployment, {**row, **provenance})

    def query(self, sql: str, **values: Any) -> list[RowMapping]:
        with session(self.settings, "reader") as connection:
            return list(connection.execute(text(sql), {"model": self.spec.name, **values}).mappings())

    def logged(self) -> dict[str, RowMapping]:
        """The logged predictions of this model, by prediction id."""
        rows = self.query("SELECT * FROM prediction_log WHERE model = :model")
        return {str(row["prediction_id"]): row for row in rows}

    def workers(self) -> list[RowMapping]:
        with session(self.settings, "reader") as connection:
            return deployments.instances(connection, self.spec.name)

    def is_ready(self) -> bool:
        return self._answers("/readyz")

    def launch(self, **variables: str) -> "subprocess.Popen[bytes]":
        """Start the processes with `variables` in their environment. `running` also waits for them and stops them."""
        argv, environment = serve_command(self.settings, self.spec.name, self.port)
        own = settings_environment(self.settings, secrets=("db_api_password", "api_key"))
        with self.log.open("ab") as log:
            return subprocess.Popen(
                argv,
                env={**inherited_environment(), **own, **environment, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @contextmanager
    def running(self, *, until: str = "/readyz") -> Iterator["Service"]:
        """Run the service until the end of the block. The block begins once `until` answers with 200."""
        process = self.launch()
        try:
            wait_for_process(f"{until} of {self.spec.name}", process, lambda: self._answers(until), log=self.log)
            yield self
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _answers(self, path: str) -> bool:
        try:
            return self.get(path).status_code == 200
        except requests.ConnectionError:
            return False


def make_service(settings: Settings, folder: Path, name: str, *, workers: int = 1, **fields: Any) -> Service:
    """A service of a model like credit_score, in its own home, not running and without a version.

    fields: settings that differ from `settings`.
    """
    home = folder / name
    home.mkdir()
    own = {"home": home, "models_dir": home, "serving_workers": workers, "mlflow_port": free_port(), **fields}
    return Service(settings.model_copy(update=own), spec_like_credit_score(name, home), free_port(), home / "log")
