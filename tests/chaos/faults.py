"""The faults by name. Each breaks a part under traffic, repairs it and leaves the world as it was."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import faults_log, faults_processes, faults_versions
from tests.chaos.accounts import Account, account
from tests.chaos.world import Skip, Unfit, World
from utils.errors import EvergreenError


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    seconds: its duration in `make chaos`.
    short: its duration in tests, in seconds. 0 excludes it from the tests.
    """

    name: str
    title: str
    do: Callable[[World, float], None]
    seconds: float
    short: float = 0.0


FAULTS = [
    Fault("mariadb-killed", "MariaDB killed, away for {seconds:.0f} s", faults_log.mariadb_killed, 60, 3),
    Fault("mariadb-frozen", "MariaDB frozen for {seconds:.0f} s", faults_log.mariadb_frozen, 20, 3),
    Fault("connections", "connection limit of MariaDB reached for {seconds:.0f} s", faults_log.connections_used_up, 10),
    Fault("refused-row", "a row that MariaDB refuses, in a batch and in a replay", faults_log.row_refused, 10, 3),
    Fault("disk-full", "disk full for the spool: alone, then without MariaDB", faults_log.disk_full, 20, 4),
    Fault("worker-killed", "a worker killed with rows in its spool", faults_processes.worker_killed, 10, 3),
    Fault("restart-alone", "restart of the only instance", faults_processes.restarted_alone, 5, 1),
    Fault("restart-proxied", "restart of two instances behind a proxy", faults_processes.restarted_behind_a_proxy, 10),
    Fault("mlflow", "MLflow killed, a version deployed meanwhile", faults_versions.mlflow_killed, 15),
    Fault("swaps", "three swaps in a row", faults_versions.three_swaps, 5),
    Fault("corrupt", "a corrupt artifact deployed", faults_versions.corrupt_artifact, 5, 1),
    Fault("clock", "clock back one hour", faults_processes.clock_set_back, 20),
    Fault("all-killed", "everything killed at once and started again", faults_processes.everything_killed, 5, 2),
]


def break_it(world: World, fault: Fault, *, seconds: float) -> Account:
    """Run `fault` for `seconds` and return its account. `problem` says what went wrong with the fault itself."""
    title, problem = fault.title.format(seconds=seconds), ""
    world.forget_run()
    try:
        fault.do(world, seconds)
    except Skip as reason:
        return Account(title, skipped=str(reason))
    except (Unfit, RuntimeError, OSError, EvergreenError) as error:
        problem = str(error) or repr(error)
        world.mend()
    if world.run is None:
        return Account(title, problem=problem)
    return account(title, world.run, problem=problem)
