"""What runs, where, how it is, and what it costs; which version each model serves."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from db.history import deployments
from db.session import session
from stack.programs.health import answers, healthy, mariadb_answers
from stack.programs.processes import pss_mb
from stack.programs.program import Program
from stack.programs.program_list import programs, serving_urls
from stack.programs.supervisor import RUNNING, State, Supervisor
from utils.errors import EvergreenError
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Part:
    """`pss_mb`: memory of the process tree in MiB, 0 while it does not run, None for a team's own server."""

    name: str
    url: str
    healthy: bool
    pss_mb: float | None
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Served:
    """`version` and `since` are None where no worker of the model's service serves one."""

    name: str
    url: str
    version: int | None
    since: datetime | None


def parts(settings: Settings) -> list[Part]:
    """Every part: own programs, the supervisor, and the servers of a team that are used instead."""
    supervisor = Supervisor(settings)
    states = supervisor.states()
    with ThreadPoolExecutor(8) as pool:
        own = list(pool.map(lambda program: _part(program, states, settings), programs(settings)))
    daemon = supervisor.pid()
    memory = pss_mb(daemon, with_children=False) if daemon else 0.0
    return [*own, *_foreign(settings), Part("supervisor", "", bool(daemon), memory, None)]


def _part(program: Program, states: Mapping[str, State], settings: Settings) -> Part:
    state = states.get(program.name)
    if state is None or state.state != RUNNING:
        # Another stack's server may answer at this address: that is not this part.
        return Part(program.name, program.url, False, 0.0, None)
    since = datetime.fromtimestamp(state.since, UTC).replace(tzinfo=None)
    return Part(program.name, program.url, healthy(program, settings), pss_mb(state.pid), since)


def _foreign(settings: Settings) -> list[Part]:
    found = []
    if settings.mariadb_host:
        found.append(Part("mariadb", settings.mariadb_address, mariadb_answers(settings), None, None))
    if settings.mlflow_url:
        url = settings.mlflow_tracking_url
        found.append(Part("mlflow", url, answers(f"{url}/health"), None, None))
    if settings.airflow_url:
        url = settings.airflow_base_url
        health = answers(f"{url}/api/v2/monitor/health", key="scheduler")
        found.append(Part("airflow", url, health, None, None))
    return found


def models(settings: Settings) -> list[Served]:
    """What each model's workers serve: the version that all of them have, and the last worker's time of taking it."""
    return [_served(settings, name, url) for name, url in serving_urls(settings).items()]


def _served(settings: Settings, model: str, url: str) -> Served:
    try:
        with session(settings, "reader") as connection:
            workers = deployments.instances(connection, model)
    except EvergreenError:  # the list of parts says that MariaDB is away
        workers = []
    versions = {worker["version"] for worker in workers}
    if len(versions) != 1 or None in versions:
        return Served(model, url, None, None)
    return Served(model, url, versions.pop(), max(worker["serving_since"] for worker in workers))
