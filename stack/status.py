"""The status of a stack: its parts, their addresses, health and memory, and the version that each model serves."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from db.history import deployments
from db.session import session
from stack.programs.health import answers, is_healthy, mariadb_answers
from stack.programs.processes import pss_mb
from stack.programs.program import Program
from stack.programs.program_list import programs, serving_urls
from stack.programs.supervisor import RUNNING, State, Supervisor
from utils.errors import EvergreenError
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the stack.

    name: the name of the program.
    url: its address. Empty if it has no address.
    healthy: whether it passes its health check now.
    pss_mb: the memory of its process tree in MiB. 0 while it does not run, None for a team's own server.
    since: the time of its start, UTC. None while it does not run, for a team's own server, and for the supervisor.
    """

    name: str
    url: str
    healthy: bool
    pss_mb: float | None
    since: datetime | None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and the version that serves.

    name: the name of the model.
    url: the address of its service.
    version: the version that all workers serve. None if they serve different versions or no version.
    since: the time when the last worker loaded it, UTC. None if `version` is None.
    """

    name: str
    url: str
    version: int | None
    since: datetime | None


def parts(settings: Settings) -> list[Part]:
    """The state of every part: the programs of this machine, a team's own servers, and the supervisor."""
    supervisor = Supervisor(settings)
    states = supervisor.states()
    with ThreadPoolExecutor(8) as pool:
        own_parts = list(pool.map(lambda program: _program_part(program, states, settings), programs(settings)))
    supervisor_pid = supervisor.pid()
    memory = pss_mb(supervisor_pid, with_children=False) if supervisor_pid else 0.0
    return [*own_parts, *_team_servers(settings), Part("supervisor", "", bool(supervisor_pid), memory, None)]


def _program_part(program: Program, states: Mapping[str, State], settings: Settings) -> Part:
    state = states.get(program.name)
    if state is None or state.state != RUNNING:
        # The address is not checked, because a server of another stack may answer there.
        return Part(program.name, program.url, False, 0.0, None)
    since = datetime.fromtimestamp(state.since, UTC).replace(tzinfo=None)
    return Part(program.name, program.url, is_healthy(program, settings), pss_mb(state.pid), since)


def _team_servers(settings: Settings) -> list[Part]:
    servers = []
    if settings.mariadb_host:
        servers.append(Part("mariadb", settings.mariadb_address, mariadb_answers(settings), None, None))
    if settings.mlflow_url:
        url = settings.mlflow_tracking_url
        servers.append(Part("mlflow", url, answers(f"{url}/health"), None, None))
    if settings.airflow_url:
        url = settings.airflow_base_url
        health = answers(f"{url}/api/v2/monitor/health", key="scheduler")
        servers.append(Part("airflow", url, health, None, None))
    return servers


def models(settings: Settings) -> list[ServedModel]:
    """The version that each model serves."""
    return [_served_model(settings, name, url) for name, url in serving_urls(settings).items()]


def _served_model(settings: Settings, model: str, url: str) -> ServedModel:
    try:
        with session(settings, "reader") as connection:
            workers = deployments.instances(connection, model)
    except EvergreenError:  # the list of parts shows that MariaDB is unavailable
        workers = []
    versions = {worker["version"] for worker in workers}
    if len(versions) != 1 or None in versions:
        return ServedModel(model, url, None, None)
    return ServedModel(model, url, versions.pop(), max(worker["serving_since"] for worker in workers))
