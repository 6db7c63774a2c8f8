"""Faults of processes: workers, whole services, and the clock they go by."""

import time

from tests.chaos.accounts import Period, settle
from tests.chaos.clock import Clock
from tests.chaos.proxy import proxy
from tests.chaos.world import World, need


def worker_killed(world: World, seconds: float) -> None:
    """SIGKILL of a worker that has rows in its spool, MariaDB being away."""
    instance = world.usual()
    with world.traffic(instance.service) as run:
        world.server.kill()
        time.sleep(seconds / 2)
        world.wait_for_spool(instance)
        run.killed.append(instance.kill_worker())
        time.sleep(seconds / 2)
        world.server.start()
        instance.wait()  # another took its place
    settle(run)


def everything_killed(world: World, seconds: float) -> None:
    """SIGKILL of the service and of MariaDB, while spools are being emptied; both started again."""
    instance = world.usual()
    with world.traffic(instance.service) as run:
        world.server.freeze()
        time.sleep(seconds)
        world.wait_for_spool(instance)
        down = Period(time.monotonic())
        run.down.append(down)
        world.server.thaw()
        run.killed.append(instance.kill())
        world.server.kill()
        world.server.start()
        instance.start()
        down.ended = time.monotonic()
    settle(run)


def restarted_alone(world: World, seconds: float) -> None:
    """The only instance is stopped and started again: whoever comes meanwhile finds nobody."""
    instance = world.instance("chaos_alone", workers=1)
    instance.service.deploy(1, instance.service.store(1))
    instance.start()
    with world.traffic(instance.service) as run:
        down = Period(time.monotonic())
        run.down.append(down)
        instance.stop()
        instance.start()
        down.ended = time.monotonic()
        time.sleep(seconds)
    settle(run)
    instance.stop()


def restarted_behind_a_proxy(world: World, seconds: float) -> None:
    """Two instances behind nginx are stopped and started again, one after the other: nobody notices."""
    both = [world.instance("chaos_proxied", workers=1, folder=folder) for folder in ("a", "b")]
    first = both[0].service
    first.deploy(1, first.store(1))
    for instance in both[1:]:
        instance.service.bento_store.put(1, first.bundle(1), tags={})
    for instance in both:
        instance.start()
    with proxy([instance.service.port for instance in both], world.folder) as port:
        with world.traffic(first, port=port) as run:
            for instance in both:
                instance.stop()
                time.sleep(seconds / 2)
                instance.start()
                time.sleep(seconds / 2)
        settle(run)
    for instance in both:
        instance.stop()


def clock_set_back(world: World, seconds: float) -> None:
    """The service's clock goes back an hour; then MariaDB is away for a while, and a version is deployed."""
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
    (found,) = service.query(
        "SELECT MAX(created_at) - INTERVAL 30 MINUTE > MIN(created_at) AS moved FROM prediction_log"
        " WHERE model = :model"
    )
    need(found["moved"], "the clock of the service did not move")
    instance.stop()
