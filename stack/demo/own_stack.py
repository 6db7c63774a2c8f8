"""The demonstration's own stack, with its own folder and ports and a copy of one model file.

The first champion is trained with the unchanged model file, except for a shorter search. Then the copy gets the
durations of `SHORT_DURATIONS`, in seconds instead of months and days, so that a user can watch the loop. It also gets
`MONITORING_ONLY`, because the many new labels of a few minutes would start a training too. Nothing else changes.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import yaml
from pydantic import SecretStr
from rich.console import Console

from db.history import trainings
from db.session import session
from pipelines.spec import ModelSpec, find_spec
from stack.down import clean, down
from stack.programs import secrets
from stack.programs.ports import free_ports
from stack.up import up
from utils.errors import AccessDenied, NotFound, Unreachable
from utils.settings import Settings, load_settings

MODEL = "credit_score"
SHORT_DURATIONS = {  # key of the model file → value in the demonstration
    "label.maturity": "10s",
    "training.window": "60s",
    "training.split.validation": "7s",
    "training.split.test": "20s",
    "training.search.timeout": "20s",
    "monitoring.window": "20s",
    "retrain.cooldown": "30s",
}
MONITORING_ONLY = {"retrain.on": ["drift", "performance"]}  # the only causes that may start a training
FIRST_TRAINING = {"training.search.timeout": "20s"}  # the only change that applies to the first training
PORT_SETTINGS = ("mariadb_port", "mlflow_port", "airflow_port", "serving_port")


def own_settings(settings: Settings, *, webhook: str) -> Settings:
    """Prepare a new stack in the folder `demo` below the home of `settings`. Return its settings.

    The stack of an earlier demonstration is stopped and removed. `webhook`: the address for alerts.

    Raises: UnknownModel, SpecInvalid, StackError.
    """
    find_spec(settings.models_dir, MODEL)
    home = settings.home / "demo"
    team_servers = {"mariadb_host": "", "mlflow_url": "", "airflow_url": ""}
    secret_fields = {name: "" for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    paths = {"home": home, "models_dir": home / "models", "env_file": home / ".env", "alert_webhook": webhook}
    first_port = free_ports(len(PORT_SETTINGS))
    demo_settings = load_settings(
        **team_servers, **secret_fields, **paths, **{name: first_port + i for i, name in enumerate(PORT_SETTINGS)}
    )
    if home.exists():
        clean(demo_settings)
    demo_settings.models_dir.mkdir(parents=True)
    shutil.copy(settings.models_dir / f"{MODEL}.yaml", demo_settings.models_dir)
    shorten(demo_settings.models_dir / f"{MODEL}.yaml", FIRST_TRAINING)
    return secrets.ensure(demo_settings)[0]


@contextmanager
def demo_stack(settings: Settings, *, console: Console, since: float | None = None) -> Iterator[ModelSpec]:
    """Bring up the stack of `own_settings`. Yield its model with short durations. Stop the stack after the block.

    `since`: Unix time from which the total time counts. Raises: the errors of `up`.
    """
    up_ended = Event()
    try:
        with ThreadPoolExecutor(1) as executor:
            # Airflow needs half a minute to notice a changed file, so the file changes during the first training.
            executor.submit(_shorten_during_training, settings, up_ended)
            try:
                up(settings, console=console, since=since)
            finally:
                up_ended.set()
        shorten(settings.models_dir / f"{MODEL}.yaml")
        yield find_spec(settings.models_dir, MODEL)
    finally:
        down(settings)


def shorten(file: Path, values: Mapping[str, Any] | None = None) -> None:
    """Rewrite the model file with `values`, by default with all values of the demonstration.

    The file is replaced atomically, because Airflow may be reading it.
    """
    values = values or {**SHORT_DURATIONS, **MONITORING_ONLY}
    content = set_values(yaml.safe_load(file.read_text(encoding="utf-8")), values)
    new_file = file.with_suffix(".new")
    new_file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    new_file.replace(file)


def set_values(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a model file's `content` with `values` at their dotted keys."""
    new_content = copy.deepcopy(dict(content))
    for key, value in values.items():
        *section_names, name = key.split(".")
        section = new_content
        for section_name in section_names:
            section = section.setdefault(section_name, {})
        section[name] = value
    return new_content


def changed_values(spec: ModelSpec) -> dict[str, str]:
    """The values of `spec` as text, by dotted key, for the keys that the demonstration changes."""
    texts = {}
    for key in (*SHORT_DURATIONS, *MONITORING_ONLY):
        value: Any = spec.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        texts[key] = ", ".join(value) if isinstance(value, list) else str(value)
    return texts


def _shorten_during_training(settings: Settings, up_ended: Event) -> None:
    """Shorten the model file after a training has claimed its decision. A running training no longer reads the file."""
    while not up_ended.wait(0.5):
        try:
            with session(settings, "reader") as connection:
                if trainings.trainings(connection, model=MODEL):
                    return shorten(settings.models_dir / f"{MODEL}.yaml")
        except (Unreachable, AccessDenied, NotFound):
            continue  # the database does not exist yet
    return None
