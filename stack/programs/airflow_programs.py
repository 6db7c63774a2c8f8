"""Airflow on one machine: four programs with one SQLite database. Tasks run in child processes of the scheduler."""

import json
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

from stack.programs.program import Launch, Program, base_environment, settings_environment
from utils.errors import StackError
from utils.private_files import write_private
from utils.settings import Settings
from utils.version import ROOT

TASKS_AT_ONCE = 2  # of all DAGs


def airflow_programs(settings: Settings) -> list[Program]:
    """The four programs of Airflow. Unlike `airflow standalone`, each program is monitored and restarted separately.

    No program gets a database password. Tasks read the store's password from the connection `feature_store`.
    """
    components = (
        ("api-server", ("--host", settings.bind, "--port", str(settings.airflow_port)), ""),
        ("scheduler", ("--skip-serve-logs",), "scheduler"),  # the API server reads the log files itself
        ("dag-processor", (), "dag_processor"),
        ("triggerer", ("--skip-serve-logs",), "triggerer"),
    )
    port_fields = {"port": settings.airflow_port, "variable": "EVERGREEN_AIRFLOW_PORT"}
    return [
        Program(
            name=f"airflow-{part}",
            launch=partial(_launch, settings, (part, *options)),
            url=settings.airflow_base_url,
            health=f"{settings.airflow_base_url}/api/v2/monitor/health",
            health_key=key,
            **(port_fields if part == "api-server" else {}),  # type: ignore[arg-type]
        )
        for part, options, key in components
    ]


def worker_launch(settings: Settings) -> Launch:
    """The command of a Celery worker, for an Airflow with the Celery executor."""
    return _launch(settings, ("celery", "worker"))


def migrate_launch(settings: Settings) -> Launch:
    """The command that migrates Airflow's metadata database."""
    return _launch(settings, ("db", "migrate"))


def _launch(settings: Settings, command: tuple[str, ...]) -> Launch:
    runs_tasks = command[0] in {"scheduler", "celery"}
    program = ("-m", "stack.programs.preloaded") if runs_tasks else ("-m", "airflow")
    environment = {**airflow_environment(settings), **settings_environment(settings, secrets=())}
    return Launch((sys.executable, *program, *command), environment)


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Airflow's options as environment variables. `settings.timezone` applies to times without a zone."""
    home, address = folder(settings), settings.airflow_base_url
    database = f"sqlite:///{home / 'airflow.db'}"
    options = {
        "CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": str(TASKS_AT_ONCE),
        "CORE__DEFAULT_TIMEZONE": settings.timezone,
        "CORE__FERNET_KEY": settings.airflow_fernet_key.get_secret_value(),
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{settings.airflow_user}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        # The next three (seconds) determine how soon a new model file becomes DAGs.
        "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "10",
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "20",
        "DAG_PROCESSOR__REFRESH_INTERVAL": "20",
        "DAG_PROCESSOR__PARSING_PROCESSES": "1",
        # The next two (seconds) determine how soon a task is retried after its scheduler or its process was killed.
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "WORKERS__EXECUTION_API_RETRIES": "8",  # each wait is twice as long, enough for a restart of two minutes
        "DATABASE__SQL_ALCHEMY_CONN": database,
        "MAINTENANCE__SQL_ALCHEMY_CONN": database,  # for `airflow db clean`: Airflow hides DATABASE__… from tasks
        "API__HOST": settings.bind,
        "API__PORT": str(settings.airflow_port),
        "API__BASE_URL": address,
        "API__WORKERS": "1",
        "API__INSTANCE_NAME": "Evergreen",
        "API_AUTH__JWT_SECRET": settings.airflow_jwt_secret.get_secret_value(),
        "LOGGING__COLORED_CONSOLE_LOG": "False",
        "USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    return {
        **base_environment(settings),
        "AIRFLOW_HOME": str(home),
        **{f"AIRFLOW__{name}": value for name, value in options.items()},
    }


def folder(settings: Settings) -> Path:
    return settings.home.resolve() / "airflow"


def write_passwords(settings: Settings) -> None:
    """Write the file from which Airflow reads the passwords of its users."""
    users = {settings.airflow_user: settings.airflow_password.get_secret_value()}
    write_private(folder(settings) / "passwords.json", json.dumps(users))


def prepare(settings: Settings) -> bool:
    """Write the password file and migrate the metadata database. Return False if the database was already current.

    Raises: StackError with Airflow's last line of output.
    """
    home = folder(settings)
    write_passwords(settings)
    version_file, airflow_version = home / "migrated", version("apache-airflow")
    last_version = version_file.read_text(encoding="utf-8") if version_file.exists() else ""
    if last_version == airflow_version and (home / "airflow.db").exists():
        return False
    migrate = [sys.executable, "-m", "airflow", "db", "migrate"]
    result = subprocess.run(migrate, env=airflow_environment(settings), cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        last_line = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise StackError(f"Airflow's metadata database could not be migrated: {' '.join(last_line)}")
    version_file.write_text(airflow_version, encoding="utf-8")
    return True
