"""docker-compose.yaml as a separate project: its name, volumes, ports and secrets differ from the user's project.

If images can't be pulled, EVERGREEN_CONTAINER_TOOLS may name a folder with two scripts. `engine.sh` starts an engine
and prints the variables to reach it. `standins.sh IMAGE…` builds replacements under the names of these images.
"""

import json
import os
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import activity
from stack.programs.ports import free_ports
from stack.programs.processes import work
from utils.patience import Patience
from utils.settings import Settings, load_settings
from utils.version import ROOT

PROJECT = "evergreencheck"
TOOLS = Path(os.environ.get("EVERGREEN_CONTAINER_TOOLS") or ROOT.parent / "shared" / "tools" / "containers")
BASES = ("python:3.12-slim-bookworm", "debian:bookworm-slim")  # the base images of the Dockerfile
PORTS = ("MARIADB", "MLFLOW", "AIRFLOW", "SERVING", "CHURN", "INSURANCE", "PROMETHEUS", "BALANCER", "LOCUST")
WITHOUT_REPLACEMENT = {"adminer", "grafana"}  # the check does not use these services
ONE_SHOT = {"migrate", "airflow-migrate", "begin"}  # services that end after their work
CONTAINER_PATIENCE = 300.0  # seconds in which no container makes progress
MOST_RESTARTS = 10  # of one container, after which the check fails; Docker waits longer each time, up to a minute


class ComposeStack:
    """The project of the check.

    folder: contains .env, the model files and the output of docker compose.
    environment: the environment variables of docker's commands.
    ports: name of a port, such as SERVING → published port.
    services: the services of docker-compose.yaml, by name.
    models: the folder with a copy of the model files.
    default_services: the names of the services without a profile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, **_find_engine()}
        shutil.copy(ROOT / "env.sh", folder)
        subprocess.run(["./env.sh"], cwd=folder, check=True, capture_output=True)
        first_port = free_ports(len(PORTS))
        self.ports = {name: first_port + offset for offset, name in enumerate(PORTS)}
        with (folder / ".env").open("a") as env:
            env.writelines(f"EVERGREEN_{name}_PORT={port}\n" for name, port in self.ports.items())
        self.services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())[
            "services"
        ]
        self.models = shutil.copytree(ROOT / "models", folder / "models")
        self._write_override()
        self.default_services = [name for name, service in self.services.items() if "profiles" not in service]

    def _write_override(self) -> None:
        override: dict[str, dict[str, Any]] = {}
        for name, service in self.services.items():
            override[name] = {}
            if "build" in service:  # a build downloads packages over this machine's network
                override[name]["build"] = {"network": "host"}
            if any(":/app/models" in volume for volume in service.get("volumes", ())):
                override[name]["volumes"] = [f"{self.models}:/app/models:ro"]
        override["airflow-worker"]["cpus"] = 1.0  # a worker represents another machine with one processor
        (self.folder / "override.yaml").write_text(yaml.safe_dump({"services": override}))

    @property
    def settings(self) -> Settings:
        """The settings with which this machine uses the containers."""
        urls = {"mlflow_url": "MLFLOW", "airflow_url": "AIRFLOW"}
        return load_settings(
            home=self.folder,
            env_file=self.folder / ".env",
            mariadb_host="127.0.0.1",
            mariadb_port=self.ports["MARIADB"],
            **{name: f"http://127.0.0.1:{self.ports[port]}" for name, port in urls.items()},
        )

    def url(self, model: str) -> str:
        """The address of the service of `model`."""
        name = {"credit_score": "SERVING"}.get(model, model.upper())
        return f"http://127.0.0.1:{self.ports[name]}"

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run `docker …` and return its output. Raises: RuntimeError if it fails."""
        result = subprocess.run(["docker", *arguments], env=self.environment, capture_output=True, text=True)
        if check and result.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}: {(result.stderr or result.stdout).strip()[-800:]}")
        return result.stdout.strip()

    def compose(self, *arguments: str, profiles: Sequence[str] = (), **variables: str) -> None:
        """Run `docker compose …`. Raises: RuntimeError with the end of its output if it fails."""
        files = ["-f", str(ROOT / "docker-compose.yaml"), "-f", str(self.folder / "override.yaml")]
        project = ["--project-directory", str(ROOT), "--env-file", str(self.folder / ".env"), "-p", PROJECT]
        options = [f"--profile={profile}" for profile in profiles]
        command = [*_compose_command(self.environment), *project, *files, *options, *arguments]
        environment = {**self.environment, **variables}
        with (self.folder / "compose.log").open("a+") as log:
            result = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            log.seek(0)
            if result.returncode:
                raise RuntimeError(f"compose {' '.join(arguments)}: {log.read()[-1500:]}")

    def containers(self, service: str) -> list[str]:
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={PROJECT}"
        return self.docker("ps", "-aq", "--filter", label, "--filter", project).splitlines()

    def state(self, container: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.docker("inspect", "-f", "{{json .State}}", container))
        return state

    def states(self) -> defaultdict[str, list[dict[str, Any]]]:
        """The states of all containers by service, each with its `RestartCount`."""
        states: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        ids = self.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        for container in json.loads(self.docker("inspect", *ids)) if ids else ():
            service = container["Config"]["Labels"]["com.docker.compose.service"]
            states[service].append({**container["State"], "RestartCount": container["RestartCount"]})
        return states

    def wait_until_ready(self, services: list[str]) -> None:
        """Wait until every service has a container, and all containers are healthy or have ended successfully.

        Raises: RuntimeError if a container ends repeatedly; GaveUp if no container makes progress. Both errors contain
        the last output of a container.
        """
        unready, airflow = services, Airflow(self.settings)
        restarts_before = {name: _count_restarts(states) for name, states in self.states().items()}

        def are_ready() -> bool:
            nonlocal unready
            states = self.states()
            unready = [name for name in services if not _is_ready(name, states[name])]
            for name in unready:
                if _count_restarts(states[name]) > restarts_before.get(name, 0) + MOST_RESTARTS:
                    raise RuntimeError(f"{name} ends again and again; {self._last_output(name)}")
            return not unready

        def progress() -> object:
            states = self.states()
            # The output of other services is no sign of progress, because they log every health check.
            output = [self._last_output(name, lines=1) for name in unready if name in ONE_SHOT]
            runs = activity(airflow) if "begin" in unready else ""
            return [_describe_progress(states[name]) for name in unready], output, runs

        Patience(
            f"ready containers of {', '.join(services)}",
            progress,
            seconds=CONTAINER_PATIENCE,
            state=lambda: f"not ready: {', '.join(unready)}; {self._last_output(unready[0])}",
        ).until(are_ready, every=0.5)

    def _last_output(self, service: str, *, lines: int = 30) -> str:
        command = ["docker", "logs", "--tail", str(lines), *self.containers(service)[:1]]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return f"the last output of {service}: {(result.stdout + result.stderr).strip()[-1500:]}"

    def crash(self, container: str) -> None:
        """Kill the container's first process with SIGKILL, and wait until Docker has restarted the container.

        `docker kill` is not used, because Docker would not restart the container after it.

        Raises: GaveUp if the container is not restarted.
        """
        state_before = self.state(container)
        os.kill(state_before["Pid"], signal.SIGKILL)
        Patience("a new start of a crashed container", lambda: self.state(container), seconds=CONTAINER_PATIENCE).until(
            lambda: self.state(container)["StartedAt"] != state_before["StartedAt"], every=0.2
        )

    def work(self, services: list[str]) -> object:
        """The work of the processes in the containers of `services`, as a sign of progress for a `Patience`."""
        states = self.states()
        return [work(state["Pid"]) for name in services for state in states[name]]

    def build_replacements(self) -> None:
        """Build replacements of images that can't be pulled, if the engine was started for this check."""
        if not (TOOLS / "standins.sh").is_file() or "DOCKER_HOST" not in _added_variables(self.environment):
            return
        images = {service["image"] for name, service in self.services.items() if name not in WITHOUT_REPLACEMENT}
        image_names = [*BASES, *sorted(image for image in images if not image.startswith("evergreen-"))]
        command = [TOOLS / "standins.sh", *image_names]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"standins.sh failed: {result.stderr[-800:]}")


def _is_ready(service: str, states: list[dict[str, Any]]) -> bool:
    if service in ONE_SHOT:
        return bool(states) and all(state["Status"] == "exited" and state["ExitCode"] == 0 for state in states)
    return bool(states) and all(state["Running"] and _health(state) in {"healthy", None} for state in states)


def _health(state: dict[str, Any]) -> str | None:
    status: str | None = state.get("Health", {}).get("Status")
    return status


def _count_restarts(states: list[dict[str, Any]]) -> int:
    return sum(state["RestartCount"] for state in states)


def _describe_progress(states: list[dict[str, Any]]) -> object:
    """A value that changes with each container's status and with the work of its processes."""
    return [(state["Status"], _health(state), work(state["Pid"])) for state in states]


def _find_engine() -> dict[str, str]:
    """Return the variables that docker needs to reach an engine. Empty if docker works without variables."""
    has_engine = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    if has_engine:
        return {}
    if not (TOOLS / "engine.sh").is_file():
        raise SystemExit("compose-check: no Docker engine answers here: start one, and see that you may use it")
    output = subprocess.run([TOOLS / "engine.sh", "start"], check=True, capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in output.split() if "=" in word)


def _added_variables(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables of `environment` that differ from this process's environment."""
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


def _compose_command(environment: dict[str, str]) -> list[str]:
    is_plugin = subprocess.run(["docker", "compose", "version"], env=environment, capture_output=True).returncode == 0
    return ["docker", "compose"] if is_plugin else ["docker-compose"]
