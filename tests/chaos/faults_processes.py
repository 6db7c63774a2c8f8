"""Faults of processes: workers, whole services and their clock."""

import time

from tests.chaos.accounts import Period, settle
from tests.chaos.clock import Clock
from tests.chaos.proxy import proxy
from tests.chaos.world import World, need


def worker_killed(world: World, seconds: float) -> None:
    """Kill a worker that has rows in its spool, while MariaDB is away."""
    instance = world.usual()
    with world.traffic(instance.service) as run:
        world.server.kill()
        time.sleep(seconds / 2)
        world.wait_for_spool(instance)
        run.kills.append(instance.kill_worker())
        time.sleep(seconds / 2)
        world.server.start()
        instance.wait()  # until a new worker has replaced it
    settle(run)


def everything_killed(world: World, seconds: float) -> None:
    """Kill the service and MariaDB while workers empty their spools, then start both again."""
    instance = world.usual()
    with world.traffic(instance.service) as run:
        world.server.freeze()
        time.sleep(seconds)
        world.wait_for_spool(instance)
        downtime = Period(time.monotonic())
        run.downtimes.append(downtime)
        world.server.thaw()
        run.kills.append(instance.kill())
        world.server.kill()
        world.server.start()
        instance.start()
        downtime.ended = time.monotonic()
    settle(run)


def restarted_alone(world: World, seconds: float) -> None:
    """Stop the only instance and start it again. Requests in between are refused."""
    instance = world.instance("chaos_alone", workers=1)
    instance.service.deploy(1, instance.service.store(1))
    instance.start()
    with world.traffic(instance.service) as run:
        downtime = Period(time.monotonic())
        run.downtimes.append(downtime)
        instance.stop()
        instance.start()
        downtime.ended = time.monotonic()
        time.sleep(seconds)
    settle(run)
    instance.stop()


def restarted_behind_a_proxy(world: World, seconds: float) -> None:
    """Restart two instances behind nginx, one after the other. Clients notice nothing."""
    instances = [world.instance("chaos_proxied", workers=1, folder=folder) for folder in ("a", "b")]
    first = instances[0].service
    first.deploy(1, first.store(1))
    for instance in instances[1:]:
        instance.service.bento_store.put(1, first.bundle(1), tags={})
    for instance in instances:
        instance.start()
    with proxy([instance.service.port for instance in instances], world.folder) as port:
        with world.traffic(first, port=port) as run:
            for instance in instances:
                instance.stop()
                time.sleep(seconds / 2)
                instance.start()
                time.sleep(seconds / 2)
        settle(run)
    for instance in instances:
        instance.stop()


def clock_set_back(world: World, seconds: float) -> None:
    """Set the service's clock back by an hour, then stop MariaDB for a while, then deploy a version."""
    clock = Clock(world.folder)
    instance = world.instance("chaos_clock", environment=clock.environment)
    service, version = instance.service, world.new_version()
    service.deploy(1, service.store(1))
    sha256 = service.store(version)
    instance.start()
    with world.traffic(service) as run:
        clock.set(-3600)
        time.sleep(seconds / 2)
        world.server.kill()
        time.sleep(seconds / 2)
        world.wait_for_spool(instance)
        world.server.start()
        service.deploy(version, sha256)
        instance.wait_for_version(version)
    settle(run)
    (row,) = service.query(
        "SELECT MAX(created_at) - INTERVAL 30 MINUTE > MIN(created_at) AS moved FROM prediction_log"
        " WHERE model = :model"
    )
    need(row["moved"], "the clock of the service did not move")
    instance.stop()
