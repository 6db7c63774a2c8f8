"""What a program of the stack is: how it is started, where it answers, and the environment it gets."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from stack.programs.processes import MARKER
from utils.settings import Settings, inherited_environment
from utils.version import ROOT


@dataclass(frozen=True, slots=True)
class Launch:
    """`environment` is complete: nothing else is inherited. It holds secrets, so it stays out of the repr."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Program:
    """`launch` is asked only when the program is to be started: it needs secrets and binaries.

    `health`: an address that answers 200, or for one of Airflow's parts says so under the key `health_key`.
    `variable`: the setting that moves `port`. `stop_seconds`: how long it may take to end before it is killed.
    """

    name: str
    launch: Callable[[], Launch]
    port: int | None = None
    variable: str = ""
    url: str = ""
    health: str = ""
    health_key: str = ""
    stop_seconds: int = 40


def base_environment(settings: Settings) -> dict[str, str]:
    """What every program gets: the user's path and locale, the mark that it is ours, and no reports to makers."""
    return {
        **inherited_environment(),
        MARKER: str(settings.home.resolve()),
        "SPT_NOENV": "1",  # setproctitle would overwrite the mark
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
    }


def settings_environment(settings: Settings, *, secrets: Iterable[str]) -> dict[str, str]:
    """`settings` as environment variables, with no other secret than those named."""
    given = {"env_file": Path("/dev/null")}
    for name, kind in Settings.model_fields.items():
        value = getattr(settings, name)
        if name == "env_file" or (kind.annotation is SecretStr and name not in secrets):
            continue
        given[name] = value.resolve() if isinstance(value, Path) else value
    plain = {
        f"EVERGREEN_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in given.items()
    }
    return {name: value for name, value in plain.items() if value}
