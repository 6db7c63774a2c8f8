"""Fixtures that need more than MariaDB: a real MLflow, and a small model with a loaded example world."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from db import history
from db.admin import bootstrap
from db.session import session
from db.tables import deployment
from pipelines import registry
from pipelines.loading.loader import load_file
from pipelines.spec import ModelSpec, find_spec
from stack.example_data import worlds
from stack.programs.health import answers
from stack.programs.starting import wait_for_end, wait_for_process
from tests.bundles import write_bundle
from tests.conftest import ROLES
from tests.servers import free_port
from utils.settings import MLFLOW_DB, Settings
from utils.version import ROOT

END = datetime(2026, 9, 30)


def environment_of(settings: Settings, folder: Path) -> dict[str, str]:
    """Environment variables for the command. `folder` holds its model files, its env file and its state."""
    lines = [f"EVERGREEN_DB_{role.upper()}_PASSWORD={settings.db_password(role)}" for role in ROLES]
    lines += [f"EVERGREEN_MARIADB_PORT={settings.mariadb_port}", f"EVERGREEN_MODELS_DIR={folder}"]
    (folder / ".env").write_text("\n".join([*lines, f"EVERGREEN_HOME={folder}"]))
    return {**os.environ, "EVERGREEN_ENV_FILE": str(folder / ".env")}


@pytest.fixture(scope="session")
def mlflow_settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings with a running MLflow. The test's MariaDB is its backend store."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", settings.db_url("mlflow", MLFLOW_DB)),
        *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"),
    ]
    # The server finds uvicorn on the PATH.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        configured = settings.model_copy(update={"mlflow_port": port})
        wait_for_process(
            "MLflow", server, lambda: answers(f"{configured.mlflow_tracking_url}/health"), log=folder / "log"
        )
        yield configured
    finally:
        server.terminate()
        wait_for_end("MLflow", server, log=folder / "log")


@dataclass(frozen=True, slots=True)
class Small:
    """A model like credit_score that trains in seconds. Its example world is loaded up to `end`."""

    spec: ModelSpec
    settings: Settings
    end: datetime


@pytest.fixture(scope="session")
def small(mlflow_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("models")
    file = yaml.safe_load((ROOT / "models" / "credit_score.yaml").read_text())
    file["name"] = "small_score"
    file["training"] |= {"window": "360d", "split": {"by": "time", "validation": "30d", "test": "60d"}}
    file["training"]["search"] |= {"trials": 2, "space": {"depth": [3, 4], "learning_rate": [0.2, 0.3]}}
    file["gates"] |= {"minimum": {"macro_f1": 0.55}, "min_rows": 300}
    file["gates"]["champion"]["margin"] = 0.05
    (folder / "small_score.yaml").write_text(yaml.safe_dump(file))
    settings = mlflow_settings.model_copy(update={"models_dir": folder})
    spec = find_spec(folder, "small_score")
    bootstrap.migrate(settings, [spec.store])
    world = worlds.example_world("credit_score", end=END, customers=600)
    world.to_parquet(folder / "world.parquet")
    load_file(folder / "world.parquet", spec=spec, settings=settings, caused_by="test", now=END + timedelta(hours=1))
    return Small(spec, settings, END)


def put_into_service(spec: ModelSpec, folder: Path, *, settings: Settings, now: datetime) -> int:
    """Register a small bundle in MLflow and record its deployment. Write the bundle to `folder`, return the version."""
    sha256 = write_bundle(spec, folder)
    mlflow = registry.client(settings)
    mlflow_run_id = mlflow.create_run(mlflow.create_experiment(spec.name)).info.run_id
    version = registry.register(
        settings, model=spec.name, mlflow_run_id=mlflow_run_id, folder=folder, tags={}, description=""
    )
    with session(settings, "pipeline") as connection:
        row = {"model": spec.name, "action": "deploy", "version": version, "artifact_sha256": sha256}
        history.add(connection, deployment, {**row, "caused_by": "t", "reason": "t", "created_at": now})
    return version
