"""Group commit: requests that share a batch, requests that fail together, and no answer without a log row."""

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from api.prometheus import Numbers
from api.scoring.batcher import BATCH, EXPLAINED, QUEUE, SMALL, Batcher
from api.scoring.predict import Prediction
from utils.errors import NotLogged, NotNow

NUMBERS = Numbers("batched", endpoints=["/predict"])


@dataclass
class FakeLog:
    """A log that keeps its rows in memory.

    batches: the rows of each write.
    away: True makes every write fail.
    refused: rows that fail, together with their request.
    """

    batches: list = field(default_factory=list)
    away: bool = False
    refused: set = field(default_factory=set)

    def write(self, requests):
        if self.away:
            raise NotNow(reason="MariaDB is away")
        self.batches.append([row for rows in requests for row in rows])
        return [NotLogged(reason="bad") if set(rows) & self.refused else None for rows in requests]

    async def write_soon(self, requests):
        """Write like the real log, but only if the log accepts every row."""
        rejects = self.refused & {row for rows in requests for row in rows}
        return None if self.away or rejects else self.write(requests)

    def close(self):
        pass


def echo(version, rows, origins):
    return [Prediction({"row": row, "version": version}, row) for row in rows]


def reasons(version, rows, answers):
    return [{**answer, "reasons": f"{row} by {version}"} for row, answer in zip(rows, answers, strict=True)]


def run(scenario, *, log=None, score=echo, version=lambda: 1, explain=reasons, shadow=lambda rows: None):
    """Run `scenario(batcher)` on a started batcher. Returns the scenario's result and the log."""
    log = log or FakeLog()

    async def main():
        batcher = Batcher(version=version, score=score, log=log, explain=explain, numbers=NUMBERS, shadow=shadow)
        batcher.start()
        try:
            return await scenario(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main()), log


def together(*requests):
    async def scenario(batcher):
        return await asyncio.gather(*(batcher.predict(rows) for rows in requests), return_exceptions=True)

    return scenario


def test_simultaneous_requests_share_one_insert_and_each_gets_its_own_rows():
    answers, log = run(together(["a"], ["b", "c"], ["d"]))
    assert [[each["row"] for each in answer_rows] for answer_rows in answers] == [["a"], ["b", "c"], ["d"]]
    assert log.batches == [["a", "b", "c", "d"]]


def test_all_rows_of_a_request_are_answered_by_one_version():
    versions = iter(range(1, 1000))
    requests = [[f"{i}-{j}" for j in range(BATCH // 3)] for i in range(6)]
    answers, log = run(together(*requests), version=lambda: next(versions))
    assert [len({each["version"] for each in answer_rows}) for answer_rows in answers] == [1] * 6
    assert len(log.batches) > 1


def test_a_request_larger_than_a_batch_is_a_batch_of_its_own():
    large = [str(i) for i in range(BATCH + 1)]
    _, log = run(together(["a"], large, ["b"]))
    assert log.batches == [["a"], large, ["b"]]


def test_while_the_log_is_away_no_request_of_the_batch_is_answered_and_the_next_batch_is():
    log = FakeLog(away=True)

    async def scenario(batcher):
        first = await asyncio.gather(batcher.predict(["a"]), batcher.predict(["b"]), return_exceptions=True)
        log.away = False
        return first, await batcher.predict(["c"])

    (first, second), _ = run(scenario, log=log)
    assert [type(each) for each in first] == [NotNow, NotNow]
    assert second[0]["row"] == "c"
    assert log.batches == [["c"]]


def test_a_refused_row_fails_its_own_request_alone():
    answers, _ = run(together(["a"], ["b", "c"], ["d"]), log=FakeLog(refused={"c"}))
    assert [type(each) for each in answers] == [list, NotLogged, list]


def test_a_failure_in_scoring_reaches_its_requests_and_the_next_batch_comes():
    def fail_once(version, rows, origins, failed=[]):  # noqa: B006 - remembers the first call on purpose
        if not failed:
            failed.append(True)
            raise RuntimeError("broken")
        return echo(version, rows, origins)

    async def scenario(batcher):
        first = await asyncio.gather(batcher.predict(["a"]), return_exceptions=True)
        return first, await batcher.predict(["b"])

    (first, second), log = run(scenario, score=fail_once)
    assert isinstance(first[0], RuntimeError)
    assert second[0]["row"] == "b"
    assert log.batches == [["b"]]


def test_a_request_cancelled_while_it_waits_is_not_scored_and_does_not_stop_other_requests():
    async def scenario(batcher):
        cancelled = asyncio.ensure_future(batcher.predict(["a"]))
        other = asyncio.ensure_future(batcher.predict(["b"]))
        await asyncio.sleep(0)
        cancelled.cancel()
        return await other

    answers, log = run(scenario)
    assert answers[0]["row"] == "b"
    assert log.batches == [["b"]]


def test_a_request_cancelled_while_it_is_scored_does_not_stop_other_requests():
    started, proceed = threading.Event(), threading.Event()

    def score(version, rows, origins):
        started.set()
        proceed.wait()
        return echo(version, rows, origins)

    async def scenario(batcher):
        # Together, both requests are large enough for the thread.
        cancelled = asyncio.ensure_future(batcher.predict(["a"] * SMALL))
        other = asyncio.ensure_future(batcher.predict(["b"]))
        await asyncio.to_thread(started.wait)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        proceed.set()
        return await other

    answers, log = run(scenario, score=score)
    assert answers[0]["row"] == "b"
    assert log.batches == [["a"] * SMALL + ["b"]]


def test_a_request_cancelled_while_its_row_is_logged_does_not_stop_other_requests():
    class SlowLog(FakeLog):
        async def write_soon(self, requests):
            started.set()
            await proceed.wait()
            return await super().write_soon(requests)

    started, proceed = asyncio.Event(), asyncio.Event()

    async def scenario(batcher):
        cancelled = asyncio.ensure_future(batcher.predict(["a"]))
        other = asyncio.ensure_future(batcher.predict(["b"]))
        await started.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        proceed.set()
        return await other

    answers, log = run(scenario, log=SlowLog())
    assert answers[0]["row"] == "b"
    assert log.batches == [["a", "b"]]


def test_only_a_small_batch_is_scored_on_the_event_loop():
    threads = []

    def score(version, rows, origins):
        threads.append((len(rows), threading.current_thread() is threading.main_thread()))
        return echo(version, rows, origins)

    run(together(["a"] * SMALL, ["b"] * (SMALL + 1), ["c"] * BATCH), score=score)
    assert threads == [(2 * SMALL + 1, False), (BATCH, False)]
    run(together(["a"] * SMALL), score=score)
    assert threads[-1] == (SMALL, True)


def test_before_the_first_model_a_request_gets_a_time_to_retry():
    answers, log = run(together(["a"]), version=lambda: None)
    assert isinstance(answers[0], NotNow)
    assert answers[0].retry_after == 5
    assert not log.batches


def test_a_full_queue_refuses_and_recovers():
    async def scenario(batcher):
        full = [asyncio.ensure_future(batcher.predict([str(i)] * 1000)) for i in range(QUEUE // 1000)]
        await asyncio.sleep(0)
        with pytest.raises(NotNow):
            await batcher.predict(["late"])
        await asyncio.gather(*full)
        return await batcher.predict(["later"])

    answers, _ = run(scenario)
    assert answers[0]["row"] == "later"


def test_reasons_come_after_the_log_from_the_version_that_answered():
    versions = iter(range(1, 1000))

    async def scenario(batcher):
        return await asyncio.gather(batcher.predict(["a", "b"], explain=True), batcher.predict(["c"]))

    (explained, plain), log = run(scenario, version=lambda: next(versions))
    assert {each["version"] for each in explained + plain} == {explained[0]["version"]}
    assert [each["reasons"] for each in explained] == [f"{row} by {explained[0]['version']}" for row in "ab"]
    assert "reasons" not in plain[0]
    assert log.batches == [["a", "b", "c"]]


def test_requests_do_not_wait_for_the_reasons_of_other_requests():
    proceed = threading.Event()

    def explain(version, rows, answers):
        proceed.wait()
        return reasons(version, rows, answers)

    async def scenario(batcher):
        slow = asyncio.ensure_future(batcher.predict(["a"], explain=True))
        others = [await batcher.predict([str(i)]) for i in range(20)]
        finished = slow.done()
        proceed.set()
        return others, finished, await slow

    (others, finished, explained), _ = run(scenario, explain=explain)
    assert len(others) == 20
    assert finished is False
    assert explained[0]["reasons"] == "a by 1"


def test_too_many_rows_that_wait_for_reasons_are_refused_before_they_are_logged():
    async def scenario(batcher):
        full = [asyncio.ensure_future(batcher.predict([str(i)] * 1000, explain=True)) for i in range(EXPLAINED // 1000)]
        await asyncio.sleep(0)
        with pytest.raises(NotNow, match="reasons"):
            await batcher.predict(["late"], explain=True)
        plain = await batcher.predict(["plain"])
        await asyncio.gather(*full)
        return plain, await batcher.predict(["later"], explain=True)

    (plain, later), log = run(scenario)
    assert (plain[0]["row"], later[0]["row"]) == ("plain", "later")
    assert not any("late" in batch for batch in log.batches)


def test_a_failure_in_explaining_reaches_its_request_and_frees_its_place():
    def explain(version, rows, answers):
        raise RuntimeError("broken")

    async def scenario(batcher):
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await batcher.predict(["a"] * EXPLAINED, explain=True)
        return await batcher.predict(["b"])

    answers, _ = run(scenario, explain=explain)
    assert answers[0]["row"] == "b"
