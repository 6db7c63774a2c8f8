"""docker-compose.yaml as a project of its own: other name, volumes, ports and secrets than the user's.

Where images can't be pulled, EVERGREEN_CONTAINER_TOOLS may name a folder with `engine.sh`, which starts an engine and
prints the variables to reach it, and `standins.sh IMAGE…`, which builds images under these names.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import activity
from stack.programs.ports import free_ports
from utils.patience import Patience
from utils.settings import Settings, load_settings
from utils.version import ROOT

PROJECT = "evergreencheck"
TOOLS = Path(os.environ.get("EVERGREEN_CONTAINER_TOOLS") or ROOT.parent / "shared" / "tools" / "containers")
BASES = ("python:3.12-slim-bookworm", "debian:bookworm-slim")  # what the Dockerfile starts from
PORTS = ("MARIADB", "MLFLOW", "AIRFLOW", "SERVING", "CHURN", "INSURANCE", "PROMETHEUS", "BALANCER", "LOCUST")
WITHOUT_STANDIN = {"adminer", "grafana"}
ONE_SHOT = {"migrate", "airflow-migrate", "begin"}
CONTAINER_PATIENCE = 300.0  # seconds without a change in any container
RESTARTS = 10  # of one container; Docker waits longer each time, a minute at last


class Stack:
    """The project; `folder` takes its .env, its model files, and what docker compose says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, **_engine()}
        shutil.copy(ROOT / "env.sh", folder)
        subprocess.run(["./env.sh"], cwd=folder, check=True, capture_output=True)
        first = free_ports(len(PORTS))
        self.ports = {name: first + place for place, name in enumerate(PORTS)}
        with (folder / ".env").open("a") as env:
            env.writelines(f"EVERGREEN_{name}_PORT={port}\n" for name, port in self.ports.items())
        self.services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())[
            "services"
        ]
        self.models = shutil.copytree(ROOT / "models", folder / "models")
        self._write_override()
        self.started = [name for name, each in self.services.items() if "profiles" not in each]

    def _write_override(self) -> None:
        override: dict[str, dict[str, Any]] = {}
        for name, service in self.services.items():
            override[name] = {}
            if "build" in service:  # builds reach the package mirrors by this machine's network
                override[name]["build"] = {"network": "host"}
            if any(":/app/models" in volume for volume in service.get("volumes", ())):
                override[name]["volumes"] = [f"{self.models}:/app/models:ro"]
        override["airflow-worker"]["cpus"] = 1.0  # a worker is what one more machine would be
        (self.folder / "override.yaml").write_text(yaml.safe_dump({"services": override}))

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
        """Where the service of `model` answers."""
        name = {"credit_score": "SERVING"}.get(model, model.upper())
        return f"http://127.0.0.1:{self.ports[name]}"

    def docker(self, *arguments: str, check: bool = True) -> str:
        """What `docker …` printed. Raises: RuntimeError where it failed."""
        ran = subprocess.run(["docker", *arguments], env=self.environment, capture_output=True, text=True)
        if check and ran.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}: {(ran.stderr or ran.stdout).strip()[-800:]}")
        return ran.stdout.strip()

    def compose(self, *arguments: str, profiles: Sequence[str] = (), **variables: str) -> None:
        """Raises: RuntimeError with what it said last."""
        files = ["-f", str(ROOT / "docker-compose.yaml"), "-f", str(self.folder / "override.yaml")]
        place = ["--project-directory", str(ROOT), "--env-file", str(self.folder / ".env"), "-p", PROJECT]
        chosen = [f"--profile={profile}" for profile in profiles]
        command = [*_compose(self.environment), *place, *files, *chosen, *arguments]
        with (self.folder / "compose.log").open("a+") as log:
            ran = subprocess.run(command, env={**self.environment, **variables}, stdout=log, stderr=subprocess.STDOUT)
            log.seek(0)
            if ran.returncode:
                raise RuntimeError(f"compose {' '.join(arguments)}: {log.read()[-1500:]}")

    def containers(self, service: str) -> list[str]:
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={PROJECT}"
        return self.docker("ps", "-aq", "--filter", label, "--filter", project).splitlines()

    def state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", "-f", "{{json .State}}", container))
        return found

    def states(self) -> defaultdict[str, list[dict[str, Any]]]:
        """Of every service's containers, with their `RestartCount`."""
        found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        there = self.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        for each in json.loads(self.docker("inspect", *there)) if there else ():
            service = each["Config"]["Labels"]["com.docker.compose.service"]
            found[service].append({**each["State"], "RestartCount": each["RestartCount"]})
        return found

    def wait_well(self, services: list[str]) -> None:
        """Return once the containers of all `services`, one of each at least, are healthy or have done their work.

        Raises: RuntimeError with the last words of one that ends again and again; GaveUp with those of one that gets no
        further.
        """
        left, airflow = services, Airflow(self.settings)
        before = {name: _restarts(states) for name, states in self.states().items()}

        def all_well() -> bool:
            nonlocal left
            states = self.states()
            left = [name for name in services if not _is_well(name, states[name])]
            for name in left:
                if _restarts(states[name]) > before.get(name, 0) + RESTARTS:
                    raise RuntimeError(f"{name} ends again and again; {self._last_words(name)}")
            return not left

        def signs() -> object:
            states = self.states()
            told = [self._last_words(name, lines=1) for name in left if name in ONE_SHOT]  # others log who asks them
            return [_progress(states[name]) for name in left], told, activity(airflow) if "begin" in left else ""

        Patience(
            f"containers to be well: {', '.join(services)}",
            signs,
            seconds=CONTAINER_PATIENCE,
            state=lambda: f"not well: {', '.join(left)}; {self._last_words(left[0])}",
        ).until(all_well, every=0.5)

    def _last_words(self, service: str, *, lines: int = 30) -> str:
        command = ["docker", "logs", "--tail", str(lines), *self.containers(service)[:1]]
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return f"{service} said: {(ran.stdout + ran.stderr).strip()[-1500:]}"

    def crash(self, container: str) -> None:
        """SIGKILL to its first process, and back again by the restart policy; `docker kill` would count as a wish.

        Raises: GaveUp where it is not started again.
        """
        before = self.state(container)
        os.kill(before["Pid"], signal.SIGKILL)
        Patience("a new start of a container that crashed", lambda: self.state(container)["Status"], seconds=120).until(
            lambda: self.state(container)["StartedAt"] != before["StartedAt"], every=0.2
        )

    def make_standins(self) -> None:
        """Images under the names of those that can't be pulled, for an engine that was started for this check."""
        if not (TOOLS / "standins.sh").is_file() or "DOCKER_HOST" not in _engine_of(self.environment):
            return
        foreign = {each["image"] for name, each in self.services.items() if name not in WITHOUT_STANDIN}
        wanted = [*BASES, *sorted(image for image in foreign if not image.startswith("evergreen-"))]
        ran = subprocess.run([TOOLS / "standins.sh", *wanted], env=self.environment, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"stand-ins: {ran.stderr[-800:]}")


def _is_well(service: str, states: list[dict[str, Any]]) -> bool:
    if service in ONE_SHOT:
        return bool(states) and all(each["Status"] == "exited" and each["ExitCode"] == 0 for each in states)
    return bool(states) and all(each["Running"] and _health(each) in {"healthy", None} for each in states)


def _health(state: dict[str, Any]) -> str | None:
    found: str | None = state.get("Health", {}).get("Status")
    return found


def _restarts(states: list[dict[str, Any]]) -> int:
    return sum(each["RestartCount"] for each in states)


def _progress(states: list[dict[str, Any]]) -> object:
    """While one is `starting` Docker itself has patience with it, which ends with the `start_period`."""
    is_starting = any(_health(each) == "starting" for each in states)
    return time.monotonic() if is_starting else [(each["Status"], _health(each)) for each in states]


def _engine() -> dict[str, str]:
    """Variables that reach an engine: none where docker answers as it is."""
    there = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    if there:
        return {}
    if not (TOOLS / "engine.sh").is_file():
        raise SystemExit("compose-check: no Docker engine answers here: start one, and see that you may use it")
    said = subprocess.run([TOOLS / "engine.sh", "start"], check=True, capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in said.split() if "=" in word)


def _engine_of(environment: dict[str, str]) -> dict[str, str]:
    """Of `environment`, what is not this process's own."""
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


def _compose(environment: dict[str, str]) -> list[str]:
    modern = subprocess.run(["docker", "compose", "version"], env=environment, capture_output=True).returncode == 0
    return ["docker", "compose"] if modern else ["docker-compose"]
