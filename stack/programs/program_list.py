"""The programs of a stack: the command, the address and the secrets of each program.

A program gets its settings as `EVERGREEN_…` variables in its environment. It does not read `.env`, because its
`EVERGREEN_ENV_FILE` is `/dev/null`. It gets only the passwords of the database users that it needs.
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
    """The programs that run on this machine. Parts for which the team has its own server are left out."""
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
        stop_seconds=120,  # enough to flush the whole buffer pool
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
    """The password is passed in the environment, because every user can read a command line."""
    argv = [sys.executable, "-m", "mlflow", "server", "--host", settings.bind, "--port", str(settings.mlflow_port)]
    environment = {
        **base_environment(settings),
        "MLFLOW_BACKEND_STORE_URI": settings.db_url("mlflow", MLFLOW_DB),
        "MLFLOW_ARTIFACTS_DESTINATION": (settings.home.resolve() / "mlflow").as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # these jobs would evaluate language models in extra processes
    }
    return Launch((*argv, "--workers", "1"), environment)


def serving_programs(settings: Settings) -> list[Program]:
    """One prediction service per model file."""
    urls = serving_urls(settings)
    return [
        Program(
            name=f"serve-{model}",
            launch=partial(_serving_launch, settings, model, port),
            port=port,
            variable="EVERGREEN_SERVING_PORT",
            url=urls[model],
            health=f"{urls[model]}/livez",  # not readyz, which fails until the first model is deployed
        )
        for model, port in serving_ports(settings).items()
    ]


def _serving_launch(settings: Settings, model: str, port: int) -> Launch:
    from api.launch import serve_command

    argv, environment = serve_command(settings, model, port)
    settings_variables = settings_environment(settings, secrets=("db_api_password", "api_key"))
    return Launch(tuple(argv), {**base_environment(settings), **settings_variables, **environment})


def serving_urls(settings: Settings) -> dict[str, str]:
    """The address of each model's service, by model name."""
    if url_template := settings.serving_url:
        return {name: url_template.format(model=name).rstrip("/") for name in model_names(settings.models_dir)}
    return {name: f"http://127.0.0.1:{port}" for name, port in serving_ports(settings).items()}


def serving_ports(settings: Settings) -> dict[str, int]:
    """Model name → port of its service. A model keeps its port if other models are added or removed."""
    file = settings.home / "serving_ports.json"
    offsets: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = model_names(settings.models_dir)
    for name in names:
        offsets.setdefault(name, max(offsets.values(), default=-1) + 1)
    if not file.exists() or json.loads(file.read_text(encoding="utf-8")) != offsets:
        write_private(file, json.dumps(offsets))
    return {name: settings.serving_port + offsets[name] for name in names}
