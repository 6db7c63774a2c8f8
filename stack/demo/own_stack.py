"""The demonstration's own stack: beside the user's, in a folder and on ports of its own, with a copy of one model file.

The first champion is trained by the model file as it is, its search but for less time. From then on the copy has the
durations of `SHORT`: months and days become seconds, so that the loop can be watched; and only what monitoring finds
may start a training, or the labels of these minutes, as many as of weeks, would. Nothing else of it changes, and no
clock does.
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
SHORT = {  # key of the model file → what it is in the demonstration
    "label.maturity": "10s",
    "training.window": "60s",
    "training.split.validation": "7s",
    "training.split.test": "20s",
    "training.search.timeout": "20s",
    "monitoring.window": "20s",
    "retrain.cooldown": "30s",
}
ONLY_FOUND = {"retrain.on": ["drift", "performance"]}
FIRST = {"training.search.timeout": "20s"}  # of these, what the first training has as well
PORTS = ("mariadb_port", "mlflow_port", "airflow_port", "serving_port")


def own_settings(settings: Settings, *, webhook: str) -> Settings:
    """Settings of a new stack in `demo` below the home of `settings`; one that was there is stopped and removed.

    `webhook`: where its alerts go. Raises: UnknownModel, SpecInvalid, StackError.
    """
    find_spec(settings.models_dir, MODEL)
    home = settings.home / "demo"
    foreign = {"mariadb_host": "", "mlflow_url": "", "airflow_url": ""}
    secret = {name: "" for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    places = {"home": home, "models_dir": home / "models", "env_file": home / ".env", "alert_webhook": webhook}
    first = free_ports(len(PORTS))
    made = load_settings(**foreign, **secret, **places, **{name: first + i for i, name in enumerate(PORTS)})
    if home.exists():
        clean(made)
    made.models_dir.mkdir(parents=True)
    shutil.copy(settings.models_dir / f"{MODEL}.yaml", made.models_dir)
    shorten(made.models_dir / f"{MODEL}.yaml", FIRST)
    return secrets.ensure(made)[0]


@contextmanager
def demo_stack(settings: Settings, *, console: Console, since: float | None = None) -> Iterator[ModelSpec]:
    """Bring the stack of `own_settings` up and give its model, changed as above; stop it at the end.

    `since`: Unix time at which the user began. Raises: what `up` raises.
    """
    over = Event()
    try:
        with ThreadPoolExecutor(1) as beside:
            # Airflow needs half a minute to notice a changed file; the first training takes as long.
            beside.submit(_shorten_once_claimed, settings, over)
            try:
                up(settings, console=console, since=since)
            finally:
                over.set()
        shorten(settings.models_dir / f"{MODEL}.yaml")
        yield find_spec(settings.models_dir, MODEL)
    finally:
        down(settings)


def shorten(file: Path, values: Mapping[str, Any] | None = None) -> None:
    """Rewrite the model file with `values`, by default all of the demonstration's: in one step, for Airflow may be
    reading it."""
    content = with_values(yaml.safe_load(file.read_text(encoding="utf-8")), values or {**SHORT, **ONLY_FOUND})
    changed = file.with_suffix(".new")
    changed.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    changed.replace(file)


def with_values(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a model file's `content` with other values at some dotted keys."""
    changed = copy.deepcopy(dict(content))
    for key, value in values.items():
        *path, last = key.split(".")
        section = changed
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return changed


def changing(spec: ModelSpec) -> dict[str, str]:
    """What `spec` says, or has by default, at the keys that the demonstration changes."""
    shown = {}
    for key in (*SHORT, *ONLY_FOUND):
        found: Any = spec.model_dump(mode="json")
        for part in key.split("."):
            found = found[part]
        shown[key] = ", ".join(found) if isinstance(found, list) else str(found)
    return shown


def _shorten_once_claimed(settings: Settings, over: Event) -> None:
    """What a training works on is fixed when it claims its decision: from then on the file may change."""
    while not over.wait(0.5):
        try:
            with session(settings, "reader") as connection:
                if trainings.trainings(connection, model=MODEL):
                    return shorten(settings.models_dir / f"{MODEL}.yaml")
        except (Unreachable, AccessDenied, NotFound):
            continue  # not there yet
    return None
