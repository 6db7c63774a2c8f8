"""The whole stack, started with `evergreen up` as a user does, on free ports and with a short search."""

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

MODEL = "credit_score"  # the model of most tests; the other models run too
PORTS = ("MARIADB_PORT", "MLFLOW_PORT", "AIRFLOW_PORT", "SERVING_PORT")
SERVICE_PORTS = 8  # more than there are models


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack, and functions to use it.

    folder: the folder of its settings, models and data.
    output: what `evergreen up` printed.
    alerts: the alerts that its webhook has received so far.
    """

    folder: Path
    output: str
    alerts: list[dict[str, Any]]

    @property
    def settings(self) -> Settings:
        return load_settings(env_file=self.folder / ".env")

    @property
    def url(self) -> str:
        """The address of the prediction service of MODEL."""
        return self.url_of(MODEL)

    def url_of(self, model: str) -> str:
        """Return the address of the prediction service of `model`."""
        return f"http://127.0.0.1:{serving_ports(self.settings)[model]}"

    def run(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run `evergreen` with `arguments`, in its own process. With `check`, its exit code must be 0."""
        program = Path(sys.executable).parent / "evergreen"
        environment = {**os.environ, "EVERGREEN_ENV_FILE": str(self.folder / ".env")}
        process = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)
        assert process.returncode == 0 or not check, process.stdout[-4000:] + process.stderr[-4000:]
        return process

    def post(self, path: str, body: Any, *, model: str = MODEL) -> requests.Response:
        """Send a request with the API key to the prediction service of `model`."""
        key = self.settings.api_key.get_secret_value()
        return requests.post(
            f"{self.url_of(model)}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=10
        )

    def airflow(self, path: str, body: Any = None, *, method: str = "GET") -> Any:
        """Log in to Airflow, send a request to its REST API, and return the content of the answer."""
        settings, base = self.settings, self.settings.airflow_base_url
        credentials = {"username": settings.airflow_user, "password": settings.airflow_password.get_secret_value()}
        token = requests.post(f"{base}/auth/token", json=credentials, timeout=10).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        answer = requests.request(method, f"{base}/api/v2/{path}", json=body, headers=headers, timeout=10)
        assert answer.ok, answer.text
        return answer.json()

    def status(self) -> Any:
        """Return the content of `evergreen status --json`."""
        return json.loads(self.run("status", "--json", check=False).stdout)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="eg-e2e-"))
    shutil.copytree(ROOT / "models", folder / "models")
    for model_file in (folder / "models").glob("*.yaml"):
        content = yaml.safe_load(model_file.read_text())
        content["training"]["search"] |= {"trials": 2, "timeout": "60s"}
        content["training"]["search"]["space"] |= {"depth": [3, 4], "learning_rate": [0.2, 0.3]}
        if content["name"] == MODEL:
            content["gates"]["champion"]["margin"] = 0.05  # so that an equally good candidate nearly always passes
        model_file.write_text(yaml.safe_dump(content))
    # SERVING_PORT is the last one. The services use it and the ports after it, also for a model that a test adds.
    first_port = neighbouring_ports(len(PORTS) + SERVICE_PORTS)
    ports = {name: first_port + offset for offset, name in enumerate(PORTS)}
    with webhook() as (address, alerts):
        environment = {"HOME": folder / "home", "MODELS_DIR": folder / "models", "ALERT_WEBHOOK": address, **ports}
        environment["SERVING_WORKERS"] = 1  # several workers are tested in tests/integration/api; one starts faster
        (folder / ".env").write_text("".join(f"EVERGREEN_{name}={value}\n" for name, value in environment.items()))
        new_stack = Stack(folder, "", alerts)
        try:
            yield Stack(folder, new_stack.run("up").stdout, alerts)
        finally:
            new_stack.run("down", check=False)
            shutil.rmtree(folder)


def wait_for[Value](condition: Callable[[], Value | None], airflow: Airflow) -> Value:
    """Wait until `condition` returns a true value, and return it. Raises: GaveUp if Airflow stops making progress."""
    return patience(airflow, "the condition of the test").until(condition, every=0.2)
