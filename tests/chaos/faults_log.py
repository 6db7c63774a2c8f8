"""Faults of the two places where predictions are logged: MariaDB and the spool on the disk."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pymysql

from tests.chaos.accounts import Period, settle
from tests.chaos.traffic import POISON
from tests.chaos.world import ChaosStack, require
from tests.services import wait_for


def kill_mariadb(stack: ChaosStack, seconds: float) -> None:
    """Kill MariaDB, and start it again after `seconds`."""
    instance = stack.shared_instance()
    with stack.send_traffic(instance.service) as run:
        stack.server.kill()
        time.sleep(seconds)
        stack.wait_for_spool(instance)
        stack.server.start()
    settle(run)


def freeze_mariadb(stack: ChaosStack, seconds: float) -> None:
    """Suspend MariaDB for `seconds`."""
    instance = stack.shared_instance()
    with stack.send_traffic(instance.service) as run:
        stack.server.freeze()
        time.sleep(seconds)
        stack.wait_for_spool(instance)
        stack.server.thaw()
    settle(run)


def use_up_connections(stack: ChaosStack, seconds: float) -> None:
    """Kill the service's connections to MariaDB again and again, and take all connections that MariaDB allows."""
    instance, settings = stack.shared_instance(), stack.settings
    login: dict[str, Any] = {"user": settings.db_user("reader"), "password": settings.db_password("reader")}
    login |= {"host": "127.0.0.1", "port": settings.mariadb_port}
    own_connections = []
    rejected_attempts = 0
    with stack.send_traffic(instance.service) as run, stack.root_cursor() as root:
        root.execute("SET GLOBAL max_connections = 10")
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                root.execute(
                    "SELECT id FROM information_schema.processlist WHERE user = %s", (settings.db_user("api"),)
                )
                for (connection_id,) in root.fetchall():
                    root.execute(f"KILL {connection_id:d}")
                try:
                    while True:
                        own_connections.append(pymysql.connect(**login))
                except pymysql.Error as error:
                    rejected_attempts += error.args[0] == 1040
                time.sleep(0.1)
            require(rejected_attempts, "the limit was not reached")
            stack.wait_for_spool(instance)
        finally:
            for connection in own_connections:
                connection.close()
            root.execute("SET GLOBAL max_connections = 300")
    settle(run)


@contextmanager
def reject_poisoned_rows(stack: ChaosStack) -> Iterator[None]:
    """Make MariaDB reject the rows of poisoned requests until the end of the block."""
    with stack.root_cursor() as root:
        root.execute("ALTER TABLE prediction_log ADD CONSTRAINT poison CHECK (entity_id NOT LIKE %s)", (f"%{POISON}%",))
    try:
        yield
    finally:
        with stack.root_cursor() as root:
            root.execute("ALTER TABLE prediction_log DROP CONSTRAINT poison")


def send_rejected_rows(stack: ChaosStack, seconds: float) -> None:
    """Send some rows that MariaDB rejects: first in batches with good rows, then in a replay from the spool."""
    instance = stack.shared_instance()
    with reject_poisoned_rows(stack):
        with stack.send_traffic(instance.service) as run:
            run.traffic.poison = True
            time.sleep(seconds / 2)
            wait_for("a rejected row", lambda: run.traffic.count(lambda request: request.status == 500))
            stack.server.kill()
            time.sleep(seconds / 2)
            stack.server.start()
            run.traffic.poison = False
        settle(run)


def fill_disk(stack: ChaosStack, seconds: float) -> None:
    """Limit the size of the workers' files, so that spools can't grow. Then also kill MariaDB for a while."""
    instance = stack.shared_instance()
    with stack.send_traffic(instance.service) as run:
        workers = instance.workers()
        limits = [worker.rlimit(psutil.RLIMIT_FSIZE) for worker in workers]
        try:
            for worker, (_, hard_limit) in zip(workers, limits, strict=True):
                worker.rlimit(psutil.RLIMIT_FSIZE, (200_000, hard_limit))  # bytes
            time.sleep(seconds / 2)  # MariaDB still stores every row, so no request fails
            outage = Period(time.monotonic())
            run.outages.append(outage)
            stack.server.kill()
            time.sleep(seconds / 2)
            wait_for("a 503", lambda: run.traffic.count(lambda request: request.status == 503))
        finally:
            for worker, limit in zip(workers, limits, strict=True):
                worker.rlimit(psutil.RLIMIT_FSIZE, limit)
        outage.ended = time.monotonic()
        time.sleep(seconds / 4)  # the spool can store rows again, so requests are answered
        stack.wait_for_spool(instance)
        stack.server.start()
    settle(run)
