"""Every program of ours is started by the very name that the code starts it by, a module's or a file's.

Such a name is a string: no import breaks where its file moves away, and weeks may pass before somebody starts it. Each
is therefore started for real, in the cheapest way that shows that it is found and can import what it needs.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import pytest

from api.launch import serve_command
from api.versions.fetching import download_command
from api.versions.shadow_feed import challenger_command
from db.history.heartbeats import Deployment
from pipelines.spec import find_spec
from stack.programs import secrets
from stack.programs.airflow_programs import airflow_programs, migrate_launch, worker_launch
from stack.programs.health import answers
from stack.programs.program import settings_environment
from stack.programs.starting import wait_for_end, wait_for_process
from stack.programs.supervisor import launcher_command
from tests.program_names import (
    OURS,
    PRODUCT,
    Argv,
    find,
    image_commands,
    in_image,
    names_in,
    names_in_code,
    names_in_source,
    ours_in_images,
)
from tests.servers import free_port
from utils.clock import utc_now
from utils.settings import Settings, inherited_environment, load_settings
from utils.version import ROOT

MODEL = "churn"
Proof = Callable[[Settings, Path], set[str]]


def run(argv: Argv, environment: dict[str, str], *, code: int = 0, says: str, **options: Any) -> set[str]:
    """Start it from the top of the repository, as everything of ours is; the names it was started by."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**inherited_environment(), "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    ran = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, **options)
    said = ran.stdout + ran.stderr
    assert (ran.returncode, bool(re.search(says, said))) == (code, True), f"{argv}: {ran.returncode}, {said[-2000:]}"
    return names_in(argv)


# --- each started: settings and a folder to the names that were tried ------------------------------------------------


def launcher(settings: Settings, folder: Path) -> set[str]:
    """The supervisor's: it becomes what a file describes."""
    described = {"argv": [sys.executable, "-c", "print('became it')"], "environment": {}}
    (folder / "program.json").write_text(json.dumps(described))
    return run(launcher_command(folder / "program.json", digest="0"), {}, says="became it")


def challenger_and_download(settings: Settings, folder: Path) -> set[str]:
    """The one starts the other, as a worker does, and tells what that said last."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(json.dumps(find_spec(ROOT / "models", MODEL).to_json()).encode())
        command = challenger_command(MODEL, Deployment(1, "0" * 64, utc_now()), UUID(int=0), theirs.fileno())
        environment = settings_environment(settings, secrets=())
        names = run(command, environment, code=1, says="^$", pass_fds=[theirs.fileno()])
        assert "MLflow does not answer" in json.loads(ours.recv(1 << 16))["refused"]
    return names | names_in(download_command(MODEL, 1))


def airflow(settings: Settings, folder: Path) -> set[str]:
    """Those of its programs that start by a name of ours, which stands before Airflow's own command."""
    launches = [
        *(part.launch() for part in airflow_programs(settings)),
        worker_launch(settings),
        migrate_launch(settings),
    ]
    ours = {launch.argv[:3]: launch.environment for launch in launches if names_in(launch.argv)}
    return set().union(*(run([*argv, "version"], dict(env), says=r"^\d+\.\d+") for argv, env in ours.items()))


def service(settings: Settings, folder: Path) -> set[str]:
    """What an image starts becomes the service, as the stack starts it: neither MariaDB nor MLflow is there."""
    (command,) = [command for command in ours_in_images("python") if "-m" in command]
    environment = {
        **inherited_environment(),
        **settings_environment(settings, secrets=("db_api_password", "api_key")),
        "PYTHONPATH": str(ROOT),
        "EVERGREEN_MODEL": MODEL,
        "TMPDIR": str(folder),
    }
    alive = f"http://127.0.0.1:{settings.serving_port}/livez"
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for_process("the service", process, lambda: answers(alive), log=folder / "service.log")
        return names_in(command) | names_in(serve_command(settings, MODEL, settings.serving_port)[0])
    finally:
        process.terminate()
        wait_for_end("the service", process, log=folder / "service.log")


def entry_point(settings: Settings, folder: Path) -> set[str]:
    """The `evergreen` command as it is installed."""
    ((_, name),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    module, _, attribute = name.partition(":")
    script = f"import sys; from {module} import {attribute}; sys.exit({attribute}())"
    run([sys.executable, "-c", script, "--help"], {}, says="Keeps tabular models fresh")
    return {name}


def command_of_images(settings: Settings, folder: Path) -> set[str]:
    """The same in an image, by a file of its own, which knows each command that a container is."""
    wanted = {word for command in image_commands() if command[:1] == ["evergreen"] for word in command[1:2]}
    shown = "".join(rf"(?=[\s\S]*\b{word}\b)" for word in sorted(wanted - {"--help"}))
    return run(in_image(["evergreen", "--help"]), {}, says=rf"\A{shown}")


def health_checks(settings: Settings, folder: Path) -> set[str]:
    """Asked of a server that calls each part healthy; Celery's has no broker to ask."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            parts = ("dag_processor", "triggerer")
            self.wfile.write(json.dumps({part: {"status": "healthy"} for part in parts}).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address, names = f"http://127.0.0.1:{server.server_port}/", set()
        for command in {tuple(command) for command in ours_in_images("python") if "-m" not in command}:
            here = [address if word.startswith("http://") else word for word in command]
            asks = address in here
            names |= run(
                here, {}, code=0 if asks else 1, says="^$" if asks else "KeyError: 'AIRFLOW__CELERY__BROKER_URL'"
            )
        server.shutdown()
    return names


def locust(settings: Settings, folder: Path) -> set[str]:
    commands = {tuple(command) for command in ours_in_images("locust")}
    return set().union(*(run([*command, "--list"], {}, says=r"Available Users:\s+\w+") for command in commands))


def tools(settings: Settings, folder: Path) -> set[str]:
    """What only a developer starts: each is found and imports what it needs, all in one process; none gets to work."""
    found = {name for name in names_in_code() if name.split(".")[0].split("/")[0] in set(OURS) - set(PRODUCT)}
    found -= set().union(*(names_in(in_image(command)) for command in image_commands() if command))
    script = f"from {find.__module__} import find; [find(name) for name in {sorted(found)!r}]; print('found')"
    run([sys.executable, "-c", script], {}, says="found")
    return found


PROOFS: tuple[Proof, ...] = (
    *(launcher, challenger_and_download, airflow, service),
    *(entry_point, command_of_images, health_checks, locust, tools),
)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Proof], set[str]]:
    """Tries a program, once however often it is asked for."""

    @cache
    def tried(proof: Proof) -> set[str]:
        folder, nobody = tmp_path_factory.mktemp(proof.__name__), free_port()
        alone: dict[str, Any] = {
            "mariadb_host": "127.0.0.1",
            "mariadb_port": nobody,
            "mlflow_url": f"http://127.0.0.1:{nobody}",
        }
        given = load_settings(
            env_file=folder / ".env", home=folder / "home", serving_port=free_port(), serving_workers=1, **alone
        )
        return proof(secrets.ensure(given)[0], folder)

    return tried


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.__name__)
def test_a_program_starts_by_the_name_that_the_code_uses(proof: Proof, tried: Callable[[Proof], set[str]]) -> None:
    assert tried(proof)


def test_no_program_is_started_by_a_name_that_is_not_tried_here(tried: Callable[[Proof], set[str]]) -> None:
    assert names_in_code() - set().union(*map(tried, PROOFS)) == set()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('[sys.executable, "-m", "stack.gone", "x"]', "stack.gone"),
        ('("-m", "api.pull")', "api.pull"),
        ('f"exec {sys.executable} -m stack.gone {x}"', "stack.gone"),
        ('[sys.executable, "-m", module]', "dags/made_up.py: -m module"),
        ('["serve", "api.elsewhere:service"]', "api.elsewhere:service"),
        ('Path(__file__).with_name("gone.py")', "dags/gone.py"),
    ],
)
def test_a_name_is_seen_wherever_it_stands(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: source)
    assert set(names_in_source(ROOT / "dags" / "made_up.py")) == {name}


def test_the_executor_of_the_profile_scale_can_be_loaded(tmp_path: Path) -> None:
    loaded = "from airflow.providers.celery.executors.celery_executor import CeleryExecutor"
    subprocess.run([sys.executable, "-c", loaded], env={**os.environ, "AIRFLOW_HOME": str(tmp_path)}, check=True)
