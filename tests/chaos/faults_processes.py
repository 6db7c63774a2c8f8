"""Faults of processes: workers, whole services and their clock."""

import time

from tests.chaos.accounts import Period, settle
from tests.chaos.clock import Clock
from tests.chaos.proxy import run_proxy
from tests.chaos.world import ChaosStack, require


def kill_worker(stack: ChaosStack, seconds: float) -> None:
    """Kill a worker that has rows in its spool, while MariaDB is unreachable."""
    instance = stack.shared_instance()
    with stack.send_traffic(instance.service) as run:
        stack.server.kill()
        time.sleep(seconds / 2)
        stack.wait_for_spool(instance)
        run.kills.append(instance.kill_worker())
        time.sleep(seconds / 2)
        stack.server.start()
        instance.wait_until_complete()  # until a new worker has replaced the killed one
    settle(run)


def kill_everything(stack: ChaosStack, seconds: float) -> None:
    """Kill the service and MariaDB while workers empty their spools, then start both again."""
    instance = stack.shared_instance()
    with stack.send_traffic(instance.service) as run:
        stack.server.freeze()
        time.sleep(seconds)
        stack.wait_for_spool(instance)
        downtime = Period(time.monotonic())
        run.downtimes.append(downtime)
        stack.server.thaw()
        run.kills.append(instance.kill())
        stack.server.kill()
        stack.server.start()
        instance.start()
        downtime.ended = time.monotonic()
    settle(run)


def restart_alone(stack: ChaosStack, seconds: float) -> None:
    """Stop the only instance and start it again. Connections are refused meanwhile."""
    instance = stack.add_instance("chaos_alone", workers=1)
    instance.service.deploy(1, instance.service.store(1))
    instance.start()
    with stack.send_traffic(instance.service) as run:
        downtime = Period(time.monotonic())
        run.downtimes.append(downtime)
        instance.stop()
        instance.start()
        downtime.ended = time.monotonic()
        time.sleep(seconds)
    settle(run)
    instance.stop()


def restart_behind_proxy(stack: ChaosStack, seconds: float) -> None:
    """Restart two instances behind nginx, one after the other. Every request is answered."""
    instances = [stack.add_instance("chaos_proxied", workers=1, folder=folder) for folder in ("a", "b")]
    first_service = instances[0].service
    first_service.deploy(1, first_service.store(1))
    for instance in instances[1:]:
        instance.service.bento_store.put(1, first_service.bundle(1), tags={})
    for instance in instances:
        instance.start()
    with run_proxy([instance.service.port for instance in instances], stack.folder) as port:
        with stack.send_traffic(first_service, port=port) as run:
            for instance in instances:
                instance.stop()
                time.sleep(seconds / 2)
                instance.start()
                time.sleep(seconds / 2)
        settle(run)
    for instance in instances:
        instance.stop()


def set_clock_back(stack: ChaosStack, seconds: float) -> None:
    """Set the service's clock back by an hour, then stop MariaDB for a while, then deploy a version."""
    clock = Clock(stack.folder)
    instance = stack.add_instance("chaos_clock", environment=clock.environment)
    service, version = instance.service, stack.new_version()
    service.deploy(1, service.store(1))
    sha256 = service.store(version)
    instance.start()
    with stack.send_traffic(service) as run:
        clock.set(-3600)
        time.sleep(seconds / 2)
        stack.server.kill()
        time.sleep(seconds / 2)
        stack.wait_for_spool(instance)
        stack.server.start()
        service.deploy(version, sha256)
        instance.wait_for_version(version)
    settle(run)
    (row,) = service.query(
        "SELECT MAX(created_at) - INTERVAL 30 MINUTE > MIN(created_at) AS moved FROM prediction_log"
        " WHERE model = :model"
    )
    require(row["moved"], "the clock of the service did not move")
    instance.stop()
