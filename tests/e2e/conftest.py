"""The whole stack, started like a user does: `evergreen up` on free ports, with a small budget for the search."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from stack.demo.webhook import webhook
from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import patience
from stack.programs.program_list import serving_ports
from tests.servers import neighbouring_ports
from utils.settings import Settings, load_settings
from utils.version import ROOT

MODEL = "credit_score"  # the model that most tests use; the other models run beside it
PORTS = ("MARIADB_PORT", "MLFLOW_PORT", "AIRFLOW_PORT", "SERVING_PORT")
SERVICES = 8  # ports for services, more than there are models


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack, with helpers to use it.

    output: what `up` printed.
    alerts: what its webhook has received so far.
    """

    folder: Path
    output: str
    alerts: list[dict[str, Any]]

    @property
    def settings(self) -> Settings:
        return load_settings(env_file=self.folder / ".env")

    @property
    def url(self) -> str:
        """The address of the service of credit_score."""
        return self.url_of(MODEL)

    def url_of(self, model: str) -> str:
        return f"http://127.0.0.1:{serving_ports(self.settings)[model]}"

    def run(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the command line in a process of its own, like a user."""
        program = Path(sys.executable).parent / "evergreen"
        environment = {**os.environ, "EVERGREEN_ENV_FILE": str(self.folder / ".env")}
        process = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)
        assert process.returncode == 0 or not check, process.stdout[-4000:] + process.stderr[-4000:]
        return process

    def post(self, path: str, body: Any, *, model: str = MODEL) -> requests.Response:
        """Send a request to the prediction service of `model`, with its key."""
        key = self.settings.api_key.get_secret_value()
        return requests.post(
            f"{self.url_of(model)}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=10
        )

    def airflow(self, path: str, body: Any = None, *, method: str = "GET") -> Any:
        """The answer of Airflow's REST API to a user."""
        settings, base = self.settings, self.settings.airflow_base_url
        credentials = {"username": settings.airflow_user, "password": settings.airflow_password.get_secret_value()}
        token = requests.post(f"{base}/auth/token", json=credentials, timeout=10).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        answer = requests.request(method, f"{base}/api/v2/{path}", json=body, headers=headers, timeout=10)
        assert answer.ok, answer.text
        return answer.json()

    def status(self) -> Any:
        return json.loads(self.run("status", "--json", check=False).stdout)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="eg-e2e-"))
    shutil.copytree(ROOT / "models", folder / "models")
    for model in (folder / "models").glob("*.yaml"):
        file = yaml.safe_load(model.read_text())
        file["training"]["search"] |= {"trials": 2, "timeout": "60s"}
        file["training"]["search"]["space"] |= {"depth": [3, 4], "learning_rate": [0.2, 0.3]}
        if file["name"] == MODEL:
            file["gates"]["champion"]["margin"] = 0.05  # an equal candidate then passes nearly always
        model.write_text(yaml.safe_dump(file))
    # Services take the last port and the ports after it, also for a model that a test adds.
    first, places = neighbouring_ports(len(PORTS) + SERVICES), range(len(PORTS))
    ports = {name: first + place for name, place in zip(PORTS, places, strict=True)}
    with webhook() as (address, alerts):
        environment = {"HOME": folder / "home", "MODELS_DIR": folder / "models", "ALERT_WEBHOOK": address, **ports}
        environment["SERVING_WORKERS"] = 1  # tests/integration/api tests two; here they would only start longer
        (folder / ".env").write_text("".join(f"EVERGREEN_{name}={value}\n" for name, value in environment.items()))
        new_stack = Stack(folder, "", alerts)
        try:
            yield Stack(folder, new_stack.run("up").stdout, alerts)
        finally:
            new_stack.run("down", check=False)
            shutil.rmtree(folder)


def wait_for[Found](condition: Callable[[], Found | None], airflow: Airflow) -> Found:
    """Return the first true value of `condition`. Raises: GaveUp once Airflow makes no progress any more."""
    return patience(airflow, "what the test waits for").until(condition, every=0.2)
