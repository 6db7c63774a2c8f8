"""The programs of a stack: how each is started, where it answers, and the few secrets it is given.

A program gets its settings as `EVERGREEN_…` variables in its environment, never from `.env`: `EVERGREEN_ENV_FILE` is
`/dev/null` there, and of the passwords only those of its own database users are set. What it must not do, it can't.
"""

import json
import sys
from functools import partial

from pipelines.spec import model_names
from stack.programs import mariadb
from stack.programs.program import Launch, Program, base_environment, settings_environment
from utils.private_files import write_private
from utils.settings import MLFLOW_DB, Settings


def programs(settings: Settings) -> list[Program]:
    """Every program that this machine runs: all parts whose address is not that of a team's own server."""
    parts = [] if settings.mariadb_host else [mariadb_program(settings)]
    parts += [] if settings.mlflow_url else [mlflow_program(settings)]
    if not settings.airflow_url:
        from stack.programs.airflow_programs import airflow_programs

        parts += airflow_programs(settings)
    return parts if settings.serving_url else parts + serving_programs(settings)


def mariadb_program(settings: Settings) -> Program:
    return Program(
        name="mariadb",
        launch=lambda: Launch(mariadb.command(settings), base_environment(settings)),
        port=settings.mariadb_port,
        variable="EVERGREEN_MARIADB_PORT",
        url=settings.mariadb_address,
        stop_seconds=120,  # a full flush of the buffer pool
    )


def mlflow_program(settings: Settings) -> Program:
    return Program(
        name="mlflow",
        launch=partial(_mlflow_launch, settings),
        port=settings.mlflow_port,
        variable="EVERGREEN_MLFLOW_PORT",
        url=settings.mlflow_tracking_url,
        health=f"{settings.mlflow_tracking_url}/health",
    )


def _mlflow_launch(settings: Settings) -> Launch:
    """The password travels in the environment: a command line is public."""
    argv = [sys.executable, "-m", "mlflow", "server", "--host", settings.bind, "--port", str(settings.mlflow_port)]
    environment = {
        **base_environment(settings),
        "MLFLOW_BACKEND_STORE_URI": settings.db_url("mlflow", MLFLOW_DB),
        "MLFLOW_ARTIFACTS_DESTINATION": (settings.home.resolve() / "mlflow").as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # evaluations of language models, in processes of their own
    }
    return Launch((*argv, "--workers", "1"), environment)


def serving_programs(settings: Settings) -> list[Program]:
    """One prediction service a model file."""
    urls = serving_urls(settings)
    return [
        Program(
            name=f"serve-{model}",
            launch=partial(_serving_launch, settings, model, port),
            port=port,
            variable="EVERGREEN_SERVING_PORT",
            url=urls[model],
            health=f"{urls[model]}/livez",  # not readyz: that waits for the first model
        )
        for model, port in serving_ports(settings).items()
    ]


def _serving_launch(settings: Settings, model: str, port: int) -> Launch:
    from api.launch import serve_command

    argv, environment = serve_command(settings, model, port)
    given = settings_environment(settings, secrets=("db_api_password", "api_key"))
    return Launch(tuple(argv), {**base_environment(settings), **given, **environment})


def serving_urls(settings: Settings) -> dict[str, str]:
    """The address of each model's service, by model name."""
    if elsewhere := settings.serving_url:
        return {name: elsewhere.format(model=name).rstrip("/") for name in model_names(settings.models_dir)}
    return {name: f"http://127.0.0.1:{port}" for name, port in serving_ports(settings).items()}


def serving_ports(settings: Settings) -> dict[str, int]:
    """The port of each model's service, by model name; a model keeps its port when others come and go."""
    known = settings.home / "serving_ports.json"
    places: dict[str, int] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    names = model_names(settings.models_dir)
    for name in names:
        places.setdefault(name, max(places.values(), default=-1) + 1)
    if not known.exists() or json.loads(known.read_text(encoding="utf-8")) != places:
        write_private(known, json.dumps(places))
    return {name: settings.serving_port + places[name] for name in names}
