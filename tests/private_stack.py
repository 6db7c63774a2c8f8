"""A private stack for tests, started by the steps of `up` but without Airflow's servers, and a small model in it."""

import os
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import requests
import yaml
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import text

from db.admin import bootstrap
from db.session import session
from pipelines.deployment import promote, rollout
from pipelines.loading.loader import load_file
from pipelines.runs import training_runs
from pipelines.spec import ModelSpec, find_spec
from pipelines.training import training_steps
from stack.example_data import worlds
from stack.programs import airflow_programs
from stack.programs.health import answers
from stack.programs.program_list import programs
from stack.programs.starting import wait_for_programs
from stack.programs.supervisor import Supervisor
from stack.up import start_mariadb
from tests.commands import evergreen
from tests.servers import neighbouring_ports
from utils.settings import Settings, load_settings
from utils.version import ROOT

END = datetime(2026, 9, 30)
MODEL = "kept_score"


@dataclass(frozen=True, slots=True)
class Stack:
    """MariaDB, MLflow and one service under a supervisor, and Airflow's database without Airflow."""

    settings: Settings

    def start(self) -> None:
        """Start every program except Airflow's, in the order of `up`."""
        supervisor, spec = Supervisor(self.settings), self.spec
        parts = [part for part in programs(self.settings) if not part.name.startswith("airflow")]
        supervisor.ensure(parts)
        start_mariadb(self.settings, supervisor)
        bootstrap.create_databases_and_users(self.settings)
        bootstrap.migrate(self.settings, [spec.store])
        supervisor.start([part.name for part in parts])
        wait_for_programs(["mlflow"], lambda _: answers(f"{self.settings.mlflow_tracking_url}/health"), supervisor)

    @property
    def spec(self) -> ModelSpec:
        return find_spec(self.settings.models_dir, MODEL)

    def post(self, path: str, body: Any) -> Any:
        key = self.settings.api_key.get_secret_value()
        url = f"http://127.0.0.1:{self.settings.serving_port}"
        wait_for_programs([f"serve-{MODEL}"], lambda _: answers(f"{url}/readyz"), Supervisor(self.settings))
        answer = requests.post(f"{url}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=20)
        assert answer.ok, answer.text
        return answer.json()

    def query(self, sql: str) -> list[dict[str, Any]]:
        with session(self.settings, "reader") as connection:
            return [dict(row) for row in connection.execute(text(sql)).mappings()]

    def airflow(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        database = airflow_programs.folder(self.settings) / "airflow.db"
        with closing(sqlite3.connect(database, autocommit=True)) as connection:
            return connection.execute(sql, values).fetchall()


def new_stack(folder: Path, **variables: object) -> Settings:
    """Write the `.env` of an empty stack in `folder`, with free ports and `variables`, and return its settings."""
    first = neighbouring_ports(4)
    names = ("MARIADB_PORT", "MLFLOW_PORT", "AIRFLOW_PORT", "SERVING_PORT")
    environment = {"HOME": folder / "home", "MODELS_DIR": folder / "models", **variables}
    environment |= {name: port for port, name in enumerate(names, start=first)}
    folder.mkdir()
    (folder / ".env").write_text("".join(f"EVERGREEN_{name}={value}\n" for name, value in environment.items()))
    return load_settings(env_file=folder / ".env")


def secrets_of(settings: Settings) -> list[str]:
    values = [getattr(settings, name) for name in type(settings).model_fields]
    return [value.get_secret_value() for value in values if isinstance(value, SecretStr)]


def fill_airflow(stack: Stack) -> None:
    """Fill Airflow's own database with a paused DAG, two connections and a variable."""
    airflow_programs.prepare(stack.settings)
    encrypted = Fernet(stack.settings.airflow_fernet_key.get_secret_value()).encrypt(b"planted").decode()
    stack.airflow("INSERT INTO dag_bundle (name, active) VALUES ('b', 1)")
    dag = {"dag_id": "d", "is_paused": 1, "is_stale": 0, "bundle_name": "b"}
    numbers = ("max_active_tasks", "max_consecutive_failed_dag_runs", "has_task_concurrency_limits")
    words = ("timetable_type", "timetable_summary", "partition_mapper_info")
    insert(stack, "dag", **dag, **dict.fromkeys(numbers, 0), **dict.fromkeys(words, "{}"))
    for name in ("feature_store", "crm"):
        credentials = {"password": encrypted, "extra": encrypted, "is_encrypted": 1, "is_extra_encrypted": 1}
        insert(stack, "connection", conn_id=name, conn_type="mysql", host="db.example", **credentials)
    insert(stack, "variable", key="token", val=encrypted, is_encrypted=1)


def insert(stack: Stack, table: str, **row: object) -> None:
    stack.airflow(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", *row.values())


def write_model(folder: Path) -> None:
    """Write the file of a model like credit_score that trains in seconds."""
    folder.mkdir()
    file = yaml.safe_load((ROOT / "models" / "credit_score.yaml").read_text())
    file["name"] = MODEL
    file["training"] |= {"window": "360d", "split": {"by": "time", "validation": "30d", "test": "60d"}}
    file["training"]["search"] |= {"trials": 1, "space": {"depth": [3, 4], "learning_rate": [0.2, 0.3]}}
    file["gates"] |= {"minimum": {"macro_f1": 0.5}, "min_rows": 300}
    (folder / f"{MODEL}.yaml").write_text(yaml.safe_dump(file))


def train_and_deploy(stack: Stack) -> None:
    """Load the example world up to `END`, train on it and deploy the version."""
    settings, spec = stack.settings, stack.spec
    world = settings.home / "world.parquet"
    worlds.example_world("credit_score", end=END, customers=600).to_parquet(world)
    load_file(world, spec=spec, settings=settings, caused_by="test", now=END + timedelta(hours=1))
    training_runs.record_decision(settings, model=MODEL, cause="manual", reason="a test", caused_by="t/kept", now=END)
    training_runs.claim(settings, spec=spec, run_id="t/kept", now=END, window_end=END)
    for step in training_steps.STEPS:
        training_steps.run_step(step, "t/kept", settings=settings, now=END)
    assert training_runs.read_verdict(settings, "t/kept") == "promote"
    claim = promote.claim(settings, model=MODEL, run_id="d/kept", now=END)
    version = promote.promote(settings, decision_id=claim["decision"])
    rollout.roll_out(settings, model=MODEL, version=version, caused_by="d/kept", reason="a test", now=END)


def root(settings: Settings, sql: str) -> list[Any]:
    with session(settings, "root", "mysql") as connection:
        return list(connection.execute(text(sql)))


def command(settings: Settings, *arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    process = evergreen(*arguments, environment={**os.environ, "EVERGREEN_ENV_FILE": str(settings.env_file)}, cwd=cwd)
    process.check_returncode()
    return process
