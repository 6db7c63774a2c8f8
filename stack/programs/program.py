"""The definition of a program of the stack: its command, its address and its environment."""

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
    environment: all environment variables. They contain secrets, so the repr omits them.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the stack.

    name: the name in the supervisor.
    launch: returns the command. It is called only when the program starts, because it needs secrets and binaries.
    port: the port on which the program listens. None if it has no port of its own.
    variable: the variable that sets `port`.
    url: the address for users.
    health: an address that answers 200 while the program is healthy.
    health_key: the key of an Airflow component in the JSON of `health`. Empty for other programs.
    stop_seconds: the time to end after SIGTERM, in seconds, before the program is killed.
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
    """The variables that every program gets: the user's path and locale, the stack's marker, and telemetry off."""
    return {
        **inherited_environment(),
        MARKER: str(settings.home.resolve()),
        "SPT_NOENV": "1",  # without it, setproctitle would overwrite the marker
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
