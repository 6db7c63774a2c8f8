"""Start each program of this project by the module or file name that the code starts it by.

These names are strings. Moving a file breaks no import, and weeks may pass before a user starts the program.
Therefore each program is started here, in the cheapest way that shows that it is found and that its imports work.
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
    """Start `argv` from the top of the repository, check exit code and output, and return the names in `argv`.

    says: a regular expression that the output must match.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**inherited_environment(), "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, **options)
    output = process.stdout + process.stderr
    assert (process.returncode, bool(re.search(says, output))) == (code, True), (
        f"{argv}: {process.returncode}, {output[-2000:]}"
    )
    return names_in(argv)


# --- proofs: each takes settings and a folder, starts programs, and returns the names that it started them by ---------


def launcher(settings: Settings, folder: Path) -> set[str]:
    """The supervisor's launcher. It becomes the program that a file describes."""
    description = {"argv": [sys.executable, "-c", "print('became it')"], "environment": {}}
    (folder / "program.json").write_text(json.dumps(description))
    return run(launcher_command(folder / "program.json", digest="0"), {}, says="became it")


def challenger_and_download(settings: Settings, folder: Path) -> set[str]:
    """The challenger, started like a worker starts it. It starts the download and sends back the download's error."""
    own_end, program_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with own_end, program_end:
        own_end.send(json.dumps(find_spec(ROOT / "models", MODEL).to_json()).encode())
        command = challenger_command(MODEL, Deployment(1, "0" * 64, utc_now()), UUID(int=0), program_end.fileno())
        environment = settings_environment(settings, secrets=())
        names = run(command, environment, code=1, says="^$", pass_fds=[program_end.fileno()])
        assert "MLflow does not answer" in json.loads(own_end.recv(1 << 16))["refused"]
    return names | names_in(download_command(MODEL, 1))


def airflow(settings: Settings, folder: Path) -> set[str]:
    """Airflow's programs that start through a module of this project, which then runs Airflow's own command."""
    launches = [
        *(part.launch() for part in airflow_programs(settings)),
        worker_launch(settings),
        migrate_launch(settings),
    ]
    environments = {launch.argv[:3]: launch.environment for launch in launches if names_in(launch.argv)}
    return set().union(*(run([*argv, "version"], dict(env), says=r"^\d+\.\d+") for argv, env in environments.items()))


def service(settings: Settings, folder: Path) -> set[str]:
    """The start command of the service's image. The service comes up without MariaDB and MLflow."""
    (command,) = [command for command in ours_in_images("python") if "-m" in command]
    environment = {
        **inherited_environment(),
        **settings_environment(settings, secrets=("db_api_password", "api_key")),
        "PYTHONPATH": str(ROOT),
        "EVERGREEN_MODEL": MODEL,
        "TMPDIR": str(folder),
    }
    livez_url = f"http://127.0.0.1:{settings.serving_port}/livez"
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for_process("the service", process, lambda: answers(livez_url), log=folder / "service.log")
        return names_in(command) | names_in(serve_command(settings, MODEL, settings.serving_port)[0])
    finally:
        process.terminate()
        wait_for_end("the service", process, log=folder / "service.log")


def entry_point(settings: Settings, folder: Path) -> set[str]:
    """The installed `evergreen` command."""
    ((_, name),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    module, _, attribute = name.partition(":")
    script = f"import sys; from {module} import {attribute}; sys.exit({attribute}())"
    run([sys.executable, "-c", script, "--help"], {}, says="Keeps tabular models fresh")
    return {name}


def command_of_images(settings: Settings, folder: Path) -> set[str]:
    """The `evergreen` command in an image: a separate file that lists every command that a container runs."""
    commands = {word for command in image_commands() if command[:1] == ["evergreen"] for word in command[1:2]}
    pattern = "".join(rf"(?=[\s\S]*\b{word}\b)" for word in sorted(commands - {"--help"}))
    return run(in_image(["evergreen", "--help"]), {}, says=rf"\A{pattern}")


def health_checks(settings: Settings, folder: Path) -> set[str]:
    """The health checks of images, with a server that reports all parts as healthy. Celery's check has no broker."""

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
            argv = [address if word.startswith("http://") else word for word in command]
            uses_server = address in argv
            names |= run(
                argv,
                {},
                code=0 if uses_server else 1,
                says="^$" if uses_server else "KeyError: 'AIRFLOW__CELERY__BROKER_URL'",
            )
        server.shutdown()
    return names


def locust(settings: Settings, folder: Path) -> set[str]:
    commands = {tuple(command) for command in ours_in_images("locust")}
    return set().union(*(run([*command, "--list"], {}, says=r"Available Users:\s+\w+") for command in commands))


def tools(settings: Settings, folder: Path) -> set[str]:
    """Programs that only developers start. One process finds all of them and runs their imports, but not their work."""
    names = {name for name in names_in_code() if name.split(".")[0].split("/")[0] in set(OURS) - set(PRODUCT)}
    names -= set().union(*(names_in(in_image(command)) for command in image_commands() if command))
    script = f"from {find.__module__} import find; [find(name) for name in {sorted(names)!r}]; print('found')"
    run([sys.executable, "-c", script], {}, says="found")
    return names


PROOFS: tuple[Proof, ...] = (
    *(launcher, challenger_and_download, airflow, service),
    *(entry_point, command_of_images, health_checks, locust, tools),
)


@pytest.fixture(scope="module")
def run_proof(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Proof], set[str]]:
    """A function that runs a proof. Each proof runs once."""

    @cache
    def run_proof(proof: Proof) -> set[str]:
        folder, closed_port = tmp_path_factory.mktemp(proof.__name__), free_port()
        unreachable: dict[str, Any] = {
            "mariadb_host": "127.0.0.1",
            "mariadb_port": closed_port,
            "mlflow_url": f"http://127.0.0.1:{closed_port}",
        }
        own_settings = load_settings(
            env_file=folder / ".env", home=folder / "home", serving_port=free_port(), serving_workers=1, **unreachable
        )
        return proof(secrets.ensure(own_settings)[0], folder)

    return run_proof


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.__name__)
def test_a_program_starts_by_the_name_that_the_code_uses(proof: Proof, run_proof: Callable[[Proof], set[str]]) -> None:
    assert run_proof(proof)


def test_every_name_in_the_code_has_a_proof(run_proof: Callable[[Proof], set[str]]) -> None:
    assert names_in_code() - set().union(*map(run_proof, PROOFS)) == set()


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
def test_a_name_is_recognised_in_every_form(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: source)
    assert set(names_in_source(ROOT / "dags" / "made_up.py")) == {name}


def test_the_executor_of_the_profile_scale_can_be_loaded(tmp_path: Path) -> None:
    statement = "from airflow.providers.celery.executors.celery_executor import CeleryExecutor"
    subprocess.run([sys.executable, "-c", statement], env={**os.environ, "AIRFLOW_HOME": str(tmp_path)}, check=True)
