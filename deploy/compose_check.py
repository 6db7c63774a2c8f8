"""`make compose-check`: bring docker-compose.yaml up for real, use it, break it, upgrade it, take it down.

It builds the images, waits for health, asks every model, trains one through Airflow, kills every container under
traffic, and upgrades under traffic; all that was answered must be in the log. It has a project, volumes and ports
of its own, prints a table and exits with 1 where anything differs from what it should be.

Where images can't be pulled, EVERGREEN_CONTAINER_TOOLS may name a folder with `engine.sh`, which starts an engine and
prints the variables to reach it, and `standins.sh IMAGE…`, which builds images under these names.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pymysql
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from api.schemas import example
from pipelines.spec import find_spec, model_names
from stack.airflow import Airflow
from stack.ports import free_ports
from stack.traffic import Traffic
from utils.settings import Settings, load_settings
from utils.version import ROOT

PROJECT = "evergreencheck"
TOOLS = Path(os.environ.get("EVERGREEN_CONTAINER_TOOLS") or ROOT.parent / "shared" / "tools" / "containers")
PORTS = ("MARIADB", "MLFLOW", "AIRFLOW", "SERVING", "CHURN", "INSURANCE", "PROMETHEUS")
ONE_SHOT = {"migrate", "airflow-migrate", "begin"}
RATE = 50.0  # requests a second while containers are killed and exchanged
MINUTES = 60.0
console = Console()


class Stack:
    """The project, with an .env of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, **_engine()}
        shutil.copy(ROOT / "env.sh", folder)
        subprocess.run(["./env.sh"], cwd=folder, check=True, capture_output=True)
        first = free_ports(len(PORTS))
        self.ports = {name: first + place for place, name in enumerate(PORTS)}
        with (folder / ".env").open("a") as env:
            env.writelines(f"EVERGREEN_{name}_PORT={port}\n" for name, port in self.ports.items())
        content = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
        self.services: dict[str, dict[str, Any]] = content["services"]
        # Builds reach the package mirrors by this machine's network.
        network = {name: {"build": {"network": "host"}} for name, each in self.services.items() if "build" in each}
        (folder / "network.yaml").write_text(yaml.safe_dump({"services": network}))
        self.started = [name for name, each in self.services.items() if "profiles" not in each]

    @property
    def settings(self) -> Settings:
        """Of this machine as a client of the containers."""
        urls = {"mlflow_url": "MLFLOW", "airflow_url": "AIRFLOW"}
        return load_settings(
            home=self.folder,
            env_file=self.folder / ".env",
            mariadb_host="127.0.0.1",
            mariadb_port=self.ports["MARIADB"],
            **{name: f"http://127.0.0.1:{self.ports[part]}" for name, part in urls.items()},
        )

    def url(self, model: str) -> str:
        name = {"credit_score": "SERVING"}.get(model, model.upper())
        return f"http://127.0.0.1:{self.ports[name]}"

    def docker(self, *arguments: str, check: bool = True) -> str:
        ran = subprocess.run(["docker", *arguments], env=self.environment, capture_output=True, text=True)
        if check and ran.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}: {(ran.stderr or ran.stdout).strip()[-800:]}")
        return ran.stdout.strip()

    def compose(self, *arguments: str, **variables: str) -> None:
        """Raises: RuntimeError with what it said last."""
        files = ["-f", str(ROOT / "docker-compose.yaml"), "-f", str(self.folder / "network.yaml")]
        place = ["--project-directory", str(ROOT), "--env-file", str(self.folder / ".env"), "-p", PROJECT]
        command = [*_compose(self.environment), *place, *files, *arguments]
        with (self.folder / "compose.log").open("a+") as log:
            ran = subprocess.run(command, env={**self.environment, **variables}, stdout=log, stderr=subprocess.STDOUT)
            log.seek(0)
            if ran.returncode:
                raise RuntimeError(f"compose {' '.join(arguments)}: {log.read()[-1500:]}")

    def container(self, service: str) -> str:
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={PROJECT}"
        return self.docker("ps", "-aq", "--filter", label, "--filter", project).splitlines()[0]

    def state(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", "-f", "{{json .State}}", self.container(service)))
        return found

    def is_well(self, service: str) -> bool:
        state = self.state(service)
        if service in ONE_SHOT:
            return bool(state["Status"] == "exited" and state["ExitCode"] == 0)
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")

    def wait_well(self, services: list[str], *, minutes: float) -> None:
        deadline, left = time.monotonic() + minutes * MINUTES, services
        while left := [name for name in left if not self.is_well(name)]:
            if time.monotonic() > deadline:
                said = self.docker("logs", "--tail", "30", self.container(left[0]), check=False)
                names = ", ".join(left)
                raise RuntimeError(f"not well after {minutes:.0f} min: {names}; {left[0]} said: {said[-1500:]}")
            time.sleep(1)


def _engine() -> dict[str, str]:
    """Variables that reach an engine: none where docker answers as it is."""
    there = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    if there:
        return {}
    if not (TOOLS / "engine.sh").is_file():
        raise SystemExit("compose-check: no Docker engine answers here: start one, and see that you may use it")
    said = subprocess.run([TOOLS / "engine.sh", "start"], check=True, capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in said.split() if "=" in word)


def _compose(environment: dict[str, str]) -> list[str]:
    modern = subprocess.run(["docker", "compose", "version"], env=environment, capture_output=True).returncode == 0
    return ["docker", "compose"] if modern else ["docker-compose"]


@contextmanager
def traffic(stack: Stack) -> Iterator[list[UUID]]:
    """People ask every model during the block; what they were answered is in the list at the end of it."""
    answered: list[UUID] = []
    models, key = model_names(ROOT / "models"), stack.settings.api_key.get_secret_value()
    bodies = {model: {"data": example(find_spec(ROOT / "models", model))} for model in models}
    asking = [
        Traffic(stack.url(model), key=key, body=lambda _, m=model: bodies[m], count=10**6, rate=RATE / len(models))
        for model in models
    ]
    for each in asking:
        each.__enter__()
    try:
        yield answered
    finally:
        with ThreadPoolExecutor(len(asking)) as ending:
            list(ending.map(lambda each: each.__exit__(None, None, None), asking))
        answered += [answer.prediction_id for each in asking for answer in each.answers]


def missing(stack: Stack, answered: list[UUID]) -> tuple[int, int]:
    """How many of the answered predictions are not in the log, and how many are there twice."""
    settings = stack.settings
    with pymysql.connect(
        host="127.0.0.1", port=settings.mariadb_port, user=settings.db_user("reader"),
        password=settings.db_password("reader"), database="evergreen",
    ) as connection, connection.cursor() as cursor:  # fmt: skip
        cursor.execute("SELECT prediction_id, COUNT(*) FROM prediction_log GROUP BY 1")
        logged = {UUID(str(identifier)): count for identifier, count in cursor.fetchall()}
    return sum(each not in logged for each in answered), sum(count > 1 for count in logged.values())


def account(stack: Stack, answered: list[UUID]) -> str:
    """Raises: RuntimeError where an answered prediction is not in the log just once."""
    lost, twice = missing(stack, answered)
    if lost or twice or not answered:
        raise RuntimeError(f"{len(answered):,} answered, {lost} of them not in the log, {twice} twice")
    return f"{len(answered):,} answered, each in the log once"


def build(stack: Stack) -> str:
    images = sorted({each["image"] for name, each in stack.services.items() if name in stack.started})
    foreign = [image for image in images if not image.startswith("evergreen-")]
    if (TOOLS / "standins.sh").is_file() and _engine_is_private(stack):
        base = "python:3.12-slim-bookworm"
        command = [TOOLS / "standins.sh", base, *foreign]
        ran = subprocess.run(command, env=stack.environment, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"stand-ins: {ran.stderr[-800:]}")
    stack.compose("build")
    sizes = []
    for image in images:
        if image.startswith("evergreen-"):
            size = int(stack.docker("image", "inspect", "-f", "{{.Size}}", image))
            sizes.append(f"{image} {size / 1e9:.2f} GB")
    return ", ".join(sizes)


def _engine_is_private(stack: Stack) -> bool:
    return "DOCKER_HOST" in stack.environment and "DOCKER_HOST" not in os.environ


def bring_up(stack: Stack) -> str:
    stack.compose("up", "-d")
    stack.wait_well(stack.started, minutes=12)
    return f"{len(stack.started)} containers as they should be"


def ask(stack: Stack) -> str:
    import requests

    answered, told = [], []
    for model in model_names(ROOT / "models"):
        body = {"data": example(find_spec(ROOT / "models", model))}
        headers = {"Authorization": f"Bearer {stack.settings.api_key.get_secret_value()}"}
        answer = requests.post(f"{stack.url(model)}/predict", json=body, headers=headers, timeout=30)
        answer.raise_for_status()
        answered.append(UUID(answer.json()["prediction_id"]))
        told.append(f"{model} {answer.json()['prediction']}")
    account(stack, answered)
    return ", ".join(told)


def train(stack: Stack) -> str:
    airflow = Airflow(stack.settings)
    run = airflow.trigger("churn_training", {"reason": "compose-check", "trials": 2})
    deadline = time.monotonic() + 5 * MINUTES
    while (state := airflow.run("churn_training", run)["state"]) not in {"success", "failed"}:
        if time.monotonic() > deadline:
            raise RuntimeError(f"churn_training is {state} after 5 min")
        time.sleep(1)
    if state != "success":
        raise RuntimeError(f"churn_training {state}")
    return f"churn_training {state}"


def kill_each(stack: Stack) -> str:
    """SIGKILL to the first process of each container: a crash, which the restart policy answers."""
    killed = [name for name in stack.started if name not in ONE_SHOT]
    with traffic(stack) as answered:
        for name in killed:
            before = stack.state(name)
            os.kill(before["Pid"], signal.SIGKILL)
            deadline = time.monotonic() + 2 * MINUTES
            while stack.state(name)["StartedAt"] == before["StartedAt"]:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{name} was not started again")
                time.sleep(0.5)
            stack.wait_well([name], minutes=4)
        stack.wait_well(stack.started, minutes=4)
    return f"{len(killed)} containers came back; {account(stack, answered)}"


def upgrade(stack: Stack) -> str:
    """Another commit makes other images, so every container of ours is exchanged."""
    before = stack.container("serve-churn")
    with traffic(stack) as answered:
        stack.compose("up", "-d", "--build", EVERGREEN_COMMIT="upgraded")
        stack.wait_well(stack.started, minutes=10)
    if stack.container("serve-churn") == before:
        raise RuntimeError("serve-churn was not exchanged")
    return account(stack, answered)


def take_down(stack: Stack) -> str:
    stack.compose("down", "--volumes", "--timeout", "60")
    left = stack.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
    if left:
        raise RuntimeError(f"containers are left: {left}")
    return "nothing is left"


STEPS: dict[str, Callable[[Stack], str]] = {
    "build": build,
    "up": bring_up,
    "one prediction a model": ask,
    "one training": train,
    "every container killed": kill_each,
    "upgrade": upgrade,
    "down": take_down,
}


def main() -> int:
    table, failed = Table(title="compose-check"), False
    for heading in ("step", "seconds", "what was seen"):
        table.add_column(heading, overflow="fold")
    with tempfile.TemporaryDirectory(prefix="eg-compose-") as folder:
        stack = Stack(Path(folder))
        for name, step in STEPS.items():
            if failed and step is not take_down:
                continue
            begun = time.monotonic()
            try:
                seen = f"[green]✓[/green] {escape(step(stack))}"
            except Exception as error:  # whatever it was, the stack is taken down and the table shown
                failed, seen = True, f"[red]✗[/red] {escape(str(error))}"
            took = time.monotonic() - begun
            table.add_row(name, f"{took:.0f}", seen)
            console.print(f"{name}: {took:.0f} s, {seen}", soft_wrap=True, markup=True)
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
