"""Every answered prediction is logged: the log and its spool, with a MariaDB that stops and starts again."""

import asyncio
import time
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import text

from api.log.drain import Drainer
from api.log.prediction_log import Breaker, PredictionLog
from api.log.spool import Spool
from db.admin.erase import deleting, open_tombstone
from db.driver import AT_ONCE
from db.history import alerts
from db.log.prediction_ids import created_at, new_id
from db.session import session
from pipelines.monitoring.monitoring_steps import send_dead_letters
from stack.demo.webhook import webhook
from tests.services import own_mariadb, wait_for
from utils.clock import utc_now
from utils.errors import NotLogged, NotNow

MODEL = "protocol"


@pytest.fixture(scope="module")
def server(credit_score):
    with own_mariadb([credit_score.store]) as own_server:
        yield own_server


class Worker:
    """The log of a service's worker, without the service."""

    def __init__(self, settings, folder, name="worker", **spool):
        self.settings, self.breaker = settings, Breaker()
        self.spool = Spool(folder, name, **spool)
        self.log = PredictionLog(settings, spool=self.spool, breaker=self.breaker)
        self.drainer = Drainer(settings, MODEL, spool=self.spool, breaker=self.breaker, folder=folder)

    def row(self, entity="e", *, prediction="fine", now=None):
        now = now or utc_now()
        prediction_id = new_id(now)
        middle = (MODEL, 1, "champion", entity, '{"a": 1}', prediction, 0.5, "{}", "[]", 1.5, str(new_id(now)))
        return (str(prediction_id), *middle, created_at(prediction_id), now)

    def logged(self):
        with session(self.settings, "reader") as connection:
            query = text("SELECT * FROM prediction_log WHERE model = :model")
            return {str(row["prediction_id"]): row for row in connection.execute(query, {"model": MODEL}).mappings()}

    def dead(self):
        with session(self.settings, "reader") as connection:
            query = text("SELECT prediction_id, error FROM dead_letter WHERE model = :model AND alerted_at IS NULL")
            return {str(row[0]): row[1] for row in connection.execute(query, {"model": MODEL})}


@pytest.fixture
def worker(server, tmp_path):
    new_worker = Worker(server.settings, tmp_path / "spool")
    yield new_worker
    if new_worker.drainer._thread.is_alive():
        new_worker.drainer.stop()
    new_worker.log.close()


def wait_until_drained(worker):
    wait_for("an empty spool", lambda: worker.spool.depth().rows == 0 and not worker.breaker.is_open)


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_while_mariadb_is_away_rows_are_spooled_at_once_and_logged_unchanged_when_it_is_back(server, worker, away):
    leave, restore = (server.stop, server.start) if away == "stopped" else (server.freeze, server.thaw)
    rows = [worker.row() for _ in range(1200)]
    assert worker.log.write([rows[:1]]) == [None]
    leave()
    try:
        assert worker.log.write([[row] for row in rows[1:600]]) == [None] * 599
        assert worker.breaker.is_open
        start = time.monotonic()
        assert worker.log.write([rows[600:]]) == [None]  # the open breaker avoids waiting for a time-out
        assert (worker.spool.depth().rows, worker.spool.depth().oldest is None) == (1199, False)
        assert time.monotonic() - start < 60
        worker.drainer.start()
    finally:
        restore()
    wait_until_drained(worker)
    log_rows = worker.logged()
    names = list(log_rows[rows[0][0]])
    for row in rows:
        values = [str(value) for value in log_rows[row[0]].values()]
        assert values == [str(value) for value in row], names
    assert worker.log.write([[worker.row()]]) == [None]
    assert worker.spool.depth().rows == 0


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_the_event_loop_logs_without_waiting_and_leaves_the_rest_to_a_thread(server, worker, away):
    leave, restore = (server.stop, server.start) if away == "stopped" else (server.freeze, server.thaw)
    rows = [worker.row() for _ in range(4)]
    assert write_soon(worker, [rows[:1]])[0] is None  # no connection yet
    assert worker.log.write([rows[:1]]) == [None]
    assert write_soon(worker, [[rows[1]], [rows[2]]])[0] == [None, None]
    assert {row[0] for row in rows[:3]} <= worker.logged().keys()
    leave()
    try:
        result, rounds = write_soon(worker, [rows[3:]])
        assert (result, worker.breaker.is_open) == (None, True)
        assert away == "stopped" or rounds > 5  # the event loop ran other tasks during the wait
        assert write_soon(worker, [rows[3:]])[0] is None
        assert worker.log.write([rows[3:]]) == [None]
        assert worker.spool.depth().rows == 1
        worker.drainer.start()
    finally:
        restore()
    wait_until_drained(worker)
    assert rows[3][0] in worker.logged()


def test_the_event_loop_leaves_refused_and_overlong_rows_to_a_thread(server, worker):
    good, second = worker.row(), worker.row()
    bad, overlong = worker.row(prediction="x" * 999), (*worker.row()[:5], f'"{"x" * AT_ONCE}"', *worker.row()[6:])
    assert worker.log.write([[good]]) == [None]
    assert write_soon(worker, [[second], [bad]])[0] is None
    assert not {second[0], bad[0]} & worker.logged().keys()
    assert [type(error) for error in worker.log.write([[second], [bad]])] == [type(None), NotLogged]
    assert write_soon(worker, [[overlong]])[0] is None
    assert overlong[0] not in worker.logged()
    assert not worker.breaker.is_open
    assert write_soon(worker, [[overlong[:5] + good[5:]]])[0] == [None]


def write_soon(worker, requests):
    """Return the result of `write_soon`, and how many times the event loop ran another task in the meantime."""

    async def main():
        rounds = 0

        async def count_rounds():
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0.05)

        counter = asyncio.create_task(count_rounds())
        try:
            return await worker.log.write_soon(requests), rounds
        finally:
            counter.cancel()

    return asyncio.run(main())


def test_a_row_whose_outcome_was_unknown_is_logged_once(server, worker):
    row = worker.row()
    assert worker.log.write([[row]]) == [None]
    worker.spool.put([row], now=utc_now())  # as if MariaDB had stored the row and its answer was lost
    worker.drainer.start()
    wait_until_drained(worker)
    assert row[0] in worker.logged()


def test_a_row_that_mariadb_refuses_fails_alone_or_becomes_a_dead_letter_with_one_alert(server, worker):
    good, bad = [worker.row() for _ in range(40)], worker.row(prediction="x" * 999)
    errors = worker.log.write([[row] for row in (*good[:20], bad, *good[20:])])
    assert [i for i, error in enumerate(errors) if isinstance(error, NotLogged)] == [20]
    later = [worker.row() for _ in range(40)]
    worker.spool.put([*later[:20], bad, *later[20:]], now=utc_now())
    worker.drainer.start()
    wait_until_drained(worker)
    assert {row[0] for row in (*good, *later)} <= worker.logged().keys()
    assert worker.dead() == {bad[0]: 1406}
    with webhook() as (address, messages):
        settings = worker.settings.model_copy(update={"alert_webhook": address})
        assert [send_dead_letters(settings, model=MODEL, now=utc_now()) for _ in range(2)] == [1, 0]
    assert [message["errors"] for message in messages] == ["1406"]
    assert "1 answered predictions could not be logged" in messages[0]["text"]


def test_without_mariadb_and_spool_every_request_is_answered_with_a_retry(server, tmp_path):
    (tmp_path / "spool").touch()  # a file where the spool's folder should be
    worker = Worker(server.settings, tmp_path / "spool")
    server.stop()
    try:
        errors = worker.log.write([[worker.row()], [worker.row()]])
    finally:
        server.start()
    assert [type(error) for error in errors] == [NotNow, NotNow]
    assert "MariaDB is away and the spool takes nothing" in str(errors[0])
    worker.drainer.start()
    wait_for("a closed breaker", lambda: not worker.breaker.is_open)
    assert worker.log.write([[worker.row()]]) == [None]
    worker.drainer.stop()
    worker.log.close()


def test_a_running_worker_logs_the_spooled_rows_of_an_ended_one(server, worker, tmp_path):
    other = Worker(server.settings, tmp_path / "spool", "dead")
    rows = [other.row() for _ in range(700)]
    other.spool.put(rows, now=utc_now())
    worker.drainer.start()
    time.sleep(3)
    assert not {row[0] for row in rows} & worker.logged().keys()  # the other worker still holds its spool
    other.spool.close()
    wait_for("its rows", lambda: {row[0] for row in rows} <= worker.logged().keys())
    wait_for("its removal", lambda: not list((tmp_path / "spool").glob("dead*")))


def test_spooled_rows_of_an_entity_that_was_forgotten_in_the_meantime_are_not_logged(server, worker):
    old_row, new_row = worker.row("gone", now=utc_now() - timedelta(seconds=9)), partial(worker.row, "gone")
    unrelated_row = worker.row("another")
    with deleting(worker.settings) as connection:
        open_tombstone(connection, model=MODEL, entity_id="gone", places=(), caused_by="t", now=utc_now())
    later_row = new_row(now=utc_now() + timedelta(seconds=1))
    worker.spool.put([old_row, unrelated_row, later_row], now=utc_now())
    worker.drainer.start()
    wait_until_drained(worker)
    log_rows = worker.logged()
    assert [row[0] in log_rows for row in (old_row, unrelated_row, later_row)] == [False, True, True]


def test_monitoring_returns_no_dead_letters_if_none_exist(server):
    with session(server.settings, "pipeline") as connection:
        assert alerts.unheard_dead_letters(connection, "nobody") == []
