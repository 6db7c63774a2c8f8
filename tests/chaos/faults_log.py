"""Faults of the places where predictions are logged: MariaDB and the disk of the spool."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pymysql

from tests.chaos.accounts import Period, settle
from tests.chaos.traffic import POISON
from tests.chaos.world import World, need
from tests.services import wait_for


def mariadb_killed(world: World, seconds: float) -> None:
    instance = world.usual()
    with world.traffic(instance.service) as run:
        world.server.kill()
        time.sleep(seconds)
        world.wait_for_spool(instance)
        world.server.start()
    settle(run)


def mariadb_frozen(world: World, seconds: float) -> None:
    instance = world.usual()
    with world.traffic(instance.service) as run:
        world.server.freeze()
        time.sleep(seconds)
        world.wait_for_spool(instance)
        world.server.thaw()
    settle(run)


def connections_used_up(world: World, seconds: float) -> None:
    """Take every connection that MariaDB allows. Kill the service's connections again and again, and take those too."""
    instance, settings = world.usual(), world.settings
    credentials: dict[str, Any] = {"user": settings.db_user("reader"), "password": settings.db_password("reader")}
    connections = []
    rejections = 0
    with world.traffic(instance.service) as run, world.admin() as admin:
        admin.execute("SET GLOBAL max_connections = 10")
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                admin.execute(
                    "SELECT id FROM information_schema.processlist WHERE user = %s", (settings.db_user("api"),)
                )
                for (number,) in admin.fetchall():
                    admin.execute(f"KILL {number:d}")
                try:
                    while True:
                        connections.append(pymysql.connect(host="127.0.0.1", port=settings.mariadb_port, **credentials))
                except pymysql.Error as error:
                    rejections += error.args[0] == 1040
                time.sleep(0.1)
            need(rejections, "the limit was not reached")
            world.wait_for_spool(instance)
        finally:
            for connection in connections:
                connection.close()
            admin.execute("SET GLOBAL max_connections = 300")
    settle(run)


@contextmanager
def poisoned_rows(world: World) -> Iterator[None]:
    """Let MariaDB reject rows of poisoned entities until the end of the block."""
    with world.admin() as admin:
        admin.execute(
            "ALTER TABLE prediction_log ADD CONSTRAINT poison CHECK (entity_id NOT LIKE %s)", (f"%{POISON}%",)
        )
    try:
        yield
    finally:
        with world.admin() as admin:
            admin.execute("ALTER TABLE prediction_log DROP CONSTRAINT poison")


def row_refused(world: World, seconds: float) -> None:
    """Send rows that MariaDB rejects among good rows: first in a batch, then in a replay from the spool."""
    instance = world.usual()
    with poisoned_rows(world):
        with world.traffic(instance.service) as run:
            run.traffic.poison = True
            time.sleep(seconds / 2)
            wait_for("a row that is refused", lambda: run.traffic.count(lambda request: request.status == 500))
            world.server.kill()
            time.sleep(seconds / 2)
            world.server.start()
            run.traffic.poison = False
        settle(run)


def disk_full(world: World, seconds: float) -> None:
    """Limit the files of all workers to a few pages: first alone, then without MariaDB, then lift the limit."""
    instance = world.usual()
    with world.traffic(instance.service) as run:
        workers = instance.workers()
        limits = [worker.rlimit(psutil.RLIMIT_FSIZE) for worker in workers]
        try:
            for worker, (_, hard) in zip(workers, limits, strict=True):
                worker.rlimit(psutil.RLIMIT_FSIZE, (200_000, hard))
            time.sleep(seconds / 2)  # MariaDB still takes every row, so clients notice nothing
            outage = Period(time.monotonic())
            run.outages.append(outage)
            world.server.kill()
            time.sleep(seconds / 2)
            wait_for("a 503", lambda: run.traffic.count(lambda request: request.status == 503))
        finally:
            for worker, limit in zip(workers, limits, strict=True):
                worker.rlimit(psutil.RLIMIT_FSIZE, limit)
        outage.ended = time.monotonic()
        time.sleep(seconds / 4)  # the spool has room again, so requests are answered
        world.wait_for_spool(instance)
        world.server.start()
    settle(run)
