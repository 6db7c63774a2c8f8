"""The definition of a program of the stack: its start, its address, and its environment."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from stack.programs.processes import MARKER
from utils.settings import Settings, inherited_environment
from utils.version import ROOT


@dataclass(frozen=True, slots=True)
class Launch:
    """The command and the environment of a program.

    argv: the command line.
    environment: the complete environment; nothing else is inherited. It holds secrets, so the repr omits it.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the stack.

    name: the name in the supervisor.
    launch: returns the command. Called only to start the program, because it needs secrets and binaries.
    port: the port that it listens on. None if it has no port.
    variable: the variable that sets `port`.
    url: the address for users.
    health: an address that answers 200 while the program is healthy.
    health_key: the key of an Airflow component in the JSON of `health`. Empty for other programs.
    stop_seconds: seconds to end after SIGTERM before the program is killed.
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
    """The environment of every program: the user's path and locale, the mark of the stack, and telemetry off."""
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
    """`settings` as environment variables. Only the secrets in `secrets` are included."""
    values = {"env_file": Path("/dev/null")}
    for name, setting in Settings.model_fields.items():
        value = getattr(settings, name)
        if name == "env_file" or (setting.annotation is SecretStr and name not in secrets):
            continue
        values[name] = value.resolve() if isinstance(value, Path) else value
    variables = {
        f"EVERGREEN_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }
    return {name: value for name, value in variables.items() if value}
