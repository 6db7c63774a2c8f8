"""The list of faults. A fault breaks a part under traffic and then repairs it, so that the next fault can run."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import faults_log, faults_processes, faults_versions
from tests.chaos.accounts import Account, make_account
from tests.chaos.world import ChaosStack, FaultSkipped, FaultWithoutEffect
from utils.errors import EvergreenError


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    title: the row of the table. `{seconds}` is replaced by the duration.
    do: breaks the part and repairs it. The number is the duration in seconds.
    seconds: the duration in `make chaos`.
    short_seconds: the duration in the integration tests. 0 excludes the fault from these tests.
    """

    name: str
    title: str
    do: Callable[[ChaosStack, float], None]
    seconds: float
    short_seconds: float = 0.0


FAULTS = [
    Fault("mariadb-killed", "MariaDB killed, away for {seconds:.0f} s", faults_log.kill_mariadb, 60, 3),
    Fault("mariadb-frozen", "MariaDB frozen for {seconds:.0f} s", faults_log.freeze_mariadb, 20, 3),
    Fault("connections", "connection limit of MariaDB reached for {seconds:.0f} s", faults_log.use_up_connections, 10),
    Fault(
        "refused-row", "a row that MariaDB refuses, in a batch and in a replay", faults_log.send_rejected_rows, 10, 3
    ),
    Fault("disk-full", "disk full for the spool: alone, then without MariaDB", faults_log.fill_disk, 20, 4),
    Fault("worker-killed", "a worker killed with rows in its spool", faults_processes.kill_worker, 10, 3),
    Fault("restart-alone", "restart of the only instance", faults_processes.restart_alone, 5, 1),
    Fault("restart-proxied", "restart of two instances behind a proxy", faults_processes.restart_behind_proxy, 10),
    Fault("mlflow", "MLflow killed, a version deployed meanwhile", faults_versions.kill_mlflow, 15),
    Fault("swaps", "three swaps in a row", faults_versions.swap_three_times, 5),
    Fault("corrupt", "a corrupt artifact deployed", faults_versions.deploy_corrupt_artifact, 5, 1),
    Fault("clock", "clock back one hour", faults_processes.set_clock_back, 20),
    Fault("all-killed", "everything killed at once and started again", faults_processes.kill_everything, 5, 2),
]


def run_fault(stack: ChaosStack, fault: Fault, *, seconds: float) -> Account:
    """Run `fault` for `seconds` and return its account. Errors of the fault itself are in `problem` of the account."""
    title, problem = fault.title.format(seconds=seconds), ""
    stack.forget_run()
    try:
        fault.do(stack, seconds)
    except FaultSkipped as reason:
        return Account(title, skipped=str(reason))
    except (FaultWithoutEffect, RuntimeError, OSError, EvergreenError) as error:
        problem = str(error) or repr(error)
        stack.repair()
    if stack.run is None:
        return Account(title, problem=problem)
    return make_account(title, stack.run, problem=problem)
