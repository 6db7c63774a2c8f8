"""An answered prediction is a logged prediction: the log and its spool on a MariaDB that comes and goes."""

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
    with own_mariadb([credit_score.store]) as started:
        yield started


class Worker:
    """What a worker of a service has of the log, without the service."""

    def __init__(self, settings, folder, name="worker", **spool):
        self.settings, self.breaker = settings, Breaker()
        self.spool = Spool(folder, name, **spool)
        self.log = PredictionLog(settings, spool=self.spool, breaker=self.breaker)
        self.drainer = Drainer(settings, MODEL, spool=self.spool, breaker=self.breaker, folder=folder)

    def row(self, entity="e", *, prediction="fine", now=None):
        now = now or utc_now()
        made = new_id(now)
        middle = (MODEL, 1, "champion", entity, '{"a": 1}', prediction, 0.5, "{}", "[]", 1.5, str(new_id(now)))
        return (str(made), *middle, created_at(made), now)

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
    made = Worker(server.settings, tmp_path / "spool")
    yield made
    if made.drainer._thread.is_alive():
        made.drainer.stop()
    made.log.close()


def drained(worker):
    wait_for("an empty spool", lambda: worker.spool.depth().rows == 0 and not worker.breaker.is_open)


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_while_mariadb_is_away_rows_are_spooled_at_once_and_logged_unchanged_when_it_is_back(server, worker, away):
    leave, come_back = (server.stop, server.start) if away == "stopped" else (server.freeze, server.thaw)
    rows = [worker.row() for _ in range(1200)]
    assert worker.log.write([rows[:1]]) == [None]
    leave()
    try:
        assert worker.log.write([[row] for row in rows[1:600]]) == [None] * 599
        assert worker.breaker.is_open
        begun = time.monotonic()
        assert worker.log.write([rows[600:]]) == [None]  # the breaker spares it the wait for a time-out
        assert (worker.spool.depth().rows, worker.spool.depth().oldest is None) == (1199, False)
        assert time.monotonic() - begun < 60
        worker.drainer.start()
    finally:
        come_back()
    drained(worker)
    logged = worker.logged()
    names = list(logged[rows[0][0]])
    for row in rows:
        kept = [str(value) for value in logged[row[0]].values()]
        assert kept == [str(value) for value in row], names
    assert worker.log.write([[worker.row()]]) == [None]
    assert worker.spool.depth().rows == 0


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_the_event_loop_logs_without_waiting_and_leaves_to_a_thread_what_it_can_not(server, worker, away):
    leave, come_back = (server.stop, server.start) if away == "stopped" else (server.freeze, server.thaw)
    rows = [worker.row() for _ in range(4)]
    assert soon(worker, [rows[:1]])[0] is None  # no connection yet
    assert worker.log.write([rows[:1]]) == [None]
    assert soon(worker, [[rows[1]], [rows[2]]])[0] == [None, None]
    assert {row[0] for row in rows[:3]} <= worker.logged().keys()
    leave()
    try:
        told, rounds = soon(worker, [rows[3:]])
        assert (told, worker.breaker.is_open) == (None, True)
        assert away == "stopped" or rounds > 5  # of the loop, while it waited
        assert soon(worker, [rows[3:]])[0] is None
        assert worker.log.write([rows[3:]]) == [None]
        assert worker.spool.depth().rows == 1
        worker.drainer.start()
    finally:
        come_back()
    drained(worker)
    assert rows[3][0] in worker.logged()


def test_the_event_loop_leaves_a_refused_and_an_overlong_row_to_a_thread_and_goes_on(server, worker):
    good, other = worker.row(), worker.row()
    bad, long = worker.row(prediction="x" * 999), (*worker.row()[:5], f'"{"x" * AT_ONCE}"', *worker.row()[6:])
    assert worker.log.write([[good]]) == [None]
    assert soon(worker, [[other], [bad]])[0] is None
    assert not {other[0], bad[0]} & worker.logged().keys()
    assert [type(each) for each in worker.log.write([[other], [bad]])] == [type(None), NotLogged]
    assert soon(worker, [[long]])[0] is None
    assert long[0] not in worker.logged()
    assert not worker.breaker.is_open
    assert soon(worker, [[long[:5] + good[5:]]])[0] == [None]


def soon(worker, requests):
    """What `write_soon` says, and how often something else had a turn meanwhile."""

    async def main():
        rounds = 0

        async def turns():
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0.05)

        other = asyncio.create_task(turns())
        try:
            return await worker.log.write_soon(requests), rounds
        finally:
            other.cancel()

    return asyncio.run(main())


def test_a_row_whose_outcome_was_unknown_is_logged_once(server, worker):
    row = worker.row()
    assert worker.log.write([[row]]) == [None]
    worker.spool.put([row], now=utc_now())  # as when MariaDB took it and its answer was lost
    worker.drainer.start()
    drained(worker)
    assert row[0] in worker.logged()


def test_a_row_that_mariadb_refuses_fails_alone_or_goes_to_the_dead_letters_of_which_people_hear_once(server, worker):
    good, bad = [worker.row() for _ in range(40)], worker.row(prediction="x" * 999)
    refused = worker.log.write([[row] for row in (*good[:20], bad, *good[20:])])
    assert [i for i, each in enumerate(refused) if isinstance(each, NotLogged)] == [20]
    later = [worker.row() for _ in range(40)]
    worker.spool.put([*later[:20], bad, *later[20:]], now=utc_now())
    worker.drainer.start()
    drained(worker)
    assert {row[0] for row in (*good, *later)} <= worker.logged().keys()
    assert worker.dead() == {bad[0]: 1406}
    with webhook() as (address, told):
        settings = worker.settings.model_copy(update={"alert_webhook": address})
        assert [send_dead_letters(settings, model=MODEL, now=utc_now()) for _ in range(2)] == [1, 0]
    assert [each["errors"] for each in told] == ["1406"]
    assert "1 answered predictions could not be logged" in told[0]["text"]


def test_with_mariadb_and_the_spool_out_every_request_is_told_to_come_back(server, tmp_path):
    (tmp_path / "spool").touch()  # where its folder should be
    worker = Worker(server.settings, tmp_path / "spool")
    server.stop()
    try:
        told = worker.log.write([[worker.row()], [worker.row()]])
    finally:
        server.start()
    assert [type(each) for each in told] == [NotNow, NotNow]
    assert "MariaDB is away and the spool takes nothing" in str(told[0])
    worker.drainer.start()
    wait_for("a closed breaker", lambda: not worker.breaker.is_open)
    assert worker.log.write([[worker.row()]]) == [None]
    worker.drainer.stop()
    worker.log.close()


def test_a_living_worker_logs_what_a_dead_one_has_answered(server, worker, tmp_path):
    dead = Worker(server.settings, tmp_path / "spool", "dead")
    rows = [dead.row() for _ in range(700)]
    dead.spool.put(rows, now=utc_now())
    worker.drainer.start()
    time.sleep(3)
    assert not {row[0] for row in rows} & worker.logged().keys()  # it lives
    dead.spool.close()
    wait_for("its rows", lambda: {row[0] for row in rows} <= worker.logged().keys())
    wait_for("its removal", lambda: not list((tmp_path / "spool").glob("dead*")))


def test_spooled_rows_of_an_entity_that_was_forgotten_meanwhile_are_not_logged(server, worker):
    before, after = worker.row("gone", now=utc_now() - timedelta(seconds=9)), partial(worker.row, "gone")
    other = worker.row("another")
    with deleting(worker.settings) as connection:
        open_tombstone(connection, model=MODEL, entity_id="gone", places=(), caused_by="t", now=utc_now())
    came_back = after(now=utc_now() + timedelta(seconds=1))
    worker.spool.put([before, other, came_back], now=utc_now())
    worker.drainer.start()
    drained(worker)
    logged = worker.logged()
    assert [row[0] in logged for row in (before, other, came_back)] == [False, True, True]


def test_monitoring_finds_no_dead_letter_where_there_is_none(server):
    with session(server.settings, "pipeline") as connection:
        assert alerts.unheard_dead_letters(connection, "nobody") == []
