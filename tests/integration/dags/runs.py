"""Runs of the DAG files in a real Airflow with its own database."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.settings import STORE_DB, Role, Settings
from utils.version import ROOT

DAGS = ROOT / "dags"


@dataclass(frozen=True, slots=True)
class Airflow:
    """The Airflow process, which forks for each run, and its folder."""

    home: Path
    process: "subprocess.Popen[str]"

    def run(
        self, models: Path, *arguments: str, settings: Settings | None = None, hook: str = "", search_tasks: int = 1
    ) -> Any:
        """Run the DAG named in `arguments` with its conf as JSON. Without arguments, describe all DAGs.

        models: the folder with the model files. The returned JSON also holds the fork's output as `log`.
        """
        output = self.home / "output"
        output.unlink(missing_ok=True)
        environment = {
            **os.environ,
            **_airflow(self.home),
            "EVERGREEN_ENV_FILE": str(self.home / "none.env"),
            "EVERGREEN_MODELS_DIR": str(models),
            "EVERGREEN_ALERT_WEBHOOK": hook,
            "EVERGREEN_SEARCH_TASKS": str(search_tasks),
            **(_connections(settings) if settings else {}),
        }
        request = {"environment": environment, "arguments": arguments, "output": str(output)}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        exit_status = self.process.stdout.readline()
        assert exit_status, (self.home / "start.log").read_text()[-3000:]
        log = output.read_text()
        print(log[-20_000:])  # pytest shows the output of a failed test
        assert exit_status == "0\n"
        (result,) = [line for line in log.splitlines() if line.startswith("RESULT")]
        return json.loads(result.removeprefix("RESULT")) | {"log": log}


@contextmanager
def airflow(home: Path) -> Iterator[Airflow]:
    """An Airflow process with its database and logs in `home`. It stops at the end of the block."""
    command: list[str | Path] = [sys.executable, ROOT / "tests/integration/dags/dag_probe.py", DAGS]
    environment = {**os.environ, **_airflow(home), "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        (home / "start.log").open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=home, text=True, stderr=log, **pipes) as process,
    ):
        yield Airflow(home, process)


def _airflow(home: Path) -> dict[str, str]:
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    }


def _connections(settings: Settings) -> dict[str, str]:
    def address(role: Role, server: str) -> str:
        return f"mysql://evergreen_{role}:{settings.db_password(role)}@127.0.0.1{server}"

    local_server = f":{settings.mariadb_port}"
    return {
        "AIRFLOW_CONN_FEATURE_STORE": address("pipeline", f"{local_server}/x"),
        "AIRFLOW_CONN_FEATURE_LOADER": address("loader", "/x"),
        "AIRFLOW_CONN_FEATURE_READER": address("reader", "/x"),
        "AIRFLOW_CONN_FEATURE_MAINTENANCE": address("maintenance", "/x"),
        "AIRFLOW_CONN_CRM": address("reader", f"{local_server}/{STORE_DB}"),
        "EVERGREEN_MLFLOW_PORT": str(settings.mlflow_port),
        "EVERGREEN_HOME": str(settings.home),
    }
