"""Measure the longest insert into the prediction log while the partitions of the log change.

A process inserts 200 rows per second, and a reader keeps a transaction open. The baseline is a plain ALTER TABLE of the
same table in the same run.
"""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

import pymysql
from sqlalchemy import text

from benchmarks.figures import Figure, lower_is_better
from db.admin.retention import MOVABLE, PREDICTIONS, add_partitions, cuts, drop_partitions
from db.log.prediction_ids import new_id
from db.log.writing import LOG_NEW
from db.partitions import day_cut, days, split_later
from db.session import engine, session
from tests.services import own_mariadb
from utils.clock import utc_now
from utils.settings import PLATFORM_DB, Settings

INSERTS_PER_SECOND = 200
READER_SECONDS = 4.0  # how long the reader keeps its transaction open
# The longest insert should be so many times shorter than with a plain ALTER TABLE, which blocks inserts until the
# reader has ended. Our change waits only a second at a time, and inserts go on between two tries.
GOAL = 2.0
DROPPED_ROWS = 200_000  # rows of the day that is dropped
FEATURES = json.dumps({f"feature_{n}": n * 1.5 for n in range(30)})  # about 700 bytes


def measure() -> list[Figure]:
    """Measure the longest insert during each kind of change.

    Raises: HeldBack if a change failed; AssertionError if no row was inserted during a change.
    """
    with own_mariadb([]) as server, _run_inserter(server.settings) as measure_longest_insert:
        settings, now = server.settings, utc_now()
        with _connect(settings) as link:
            _fill(link, now - timedelta(days=1), DROPPED_ROWS)  # the first partition takes them, however old they are

        def alter_plainly() -> None:
            cut = day_cut(days(_find_last_day(settings), 2)[-1])
            with session(settings, "maintenance") as connection:
                connection.execute(text(f"ALTER TABLE prediction_log {split_later(cut.name, PREDICTIONS.bound(cut))}"))

        def add_days() -> None:
            assert add_partitions(settings, PREDICTIONS, today=_find_last_day(settings))

        def drop_days() -> None:
            assert drop_partitions(settings, PREDICTIONS, before=now + timedelta(days=3), caused_by="bench", now=now)

        alter_ms = measure_longest_insert("plain ALTER TABLE", _with_open_reader(settings, alter_plainly))
        add_ms = measure_longest_insert("partitions made", _with_open_reader(settings, add_days))
        with _connect(settings) as link:
            _fill(link, _midnight(_find_last_day(settings)) + timedelta(days=2), MOVABLE)
        sort_ms = measure_longest_insert("rows of p_later sorted in", _with_open_reader(settings, add_days))
        drop_ms = measure_longest_insert("partitions dropped", _with_open_reader(settings, drop_days))
    return [
        lower_is_better(
            f"longest insert, a reader open for {READER_SECONDS:.0f} s: {change}",
            [change_ms],
            "ms",
            against="a plain ALTER TABLE for one day",
            baselines=[alter_ms],
            goal=GOAL,
        )
        for change, change_ms in (
            ("14 days made", add_ms),
            (f"{MOVABLE:,} rows of p_later sorted in", sort_ms),
            (f"days dropped, {DROPPED_ROWS:,} rows in one", drop_ms),
        )
    ]


def _find_last_day(settings: Settings) -> Any:
    """Return the date at which the newest partition of the log ends."""
    with session(settings, "reader") as connection:
        return cuts(connection, PREDICTIONS)[-1].before.date()


def _midnight(day: Any) -> datetime:
    return datetime(day.year, day.month, day.day)


def _with_open_reader(settings: Settings, change: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `change` while a reader's transaction on the log is open for READER_SECONDS."""

    def change_beside_reader() -> None:
        reader_engine, is_open = engine(settings, "reader"), threading.Event()

        def read() -> None:
            with reader_engine.connect() as connection:
                connection.execute(text("SELECT COUNT(*) FROM prediction_log"))
                is_open.set()
                time.sleep(READER_SECONDS)

        reader = threading.Thread(target=read)
        reader.start()
        is_open.wait()
        change()
        reader.join()
        reader_engine.dispose()

    return change_beside_reader


@contextmanager
def _run_inserter(settings: Settings) -> Iterator[Callable[[str, Callable[[], None]], float]]:
    """Run a process that inserts rows until the end of the block.

    Yields: a function that makes a change, prints a line with its name, and returns the longest insert meanwhile in ms.
    """
    processes = multiprocessing.get_context("spawn")
    stop, longest, count = processes.Event(), processes.Value("d", 0.0), processes.Value("q", 0)
    process = processes.Process(target=_insert, args=(settings, stop, longest, count))
    process.start()

    def measure_longest_insert(name: str, change: Callable[[], None]) -> float:
        longest.value, count_before = 0.0, count.value
        start = time.perf_counter()
        change()
        time.sleep(1)  # inserts that waited for the change end in this second
        print(f"{name}: {time.perf_counter() - start:.1f} s, {count.value - count_before} inserts", flush=True)
        assert count.value > count_before
        return float(longest.value)

    try:
        while not count.value and process.is_alive():
            time.sleep(0.05)
        yield measure_longest_insert
    finally:
        stop.set()
        process.join()


def _insert(settings: Settings, stop: Event, longest: "Synchronized[float]", count: "Synchronized[int]") -> None:
    """Insert rows at INSERTS_PER_SECOND until `stop` is set. `longest` is in milliseconds."""
    with _connect(settings) as link, link.cursor() as cursor:
        due = time.perf_counter()
        while not stop.is_set():
            start = time.perf_counter()
            cursor.execute(LOG_NEW, _build_row(utc_now()))
            longest.value = max(longest.value, 1_000 * (time.perf_counter() - start))
            count.value += 1
            due = max(due + 1 / INSERTS_PER_SECOND, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))


def _fill(link: "pymysql.Connection[Any]", moment: datetime, rows: int) -> None:
    """Insert `rows` rows into the log. The first one is from `moment`, each other one a millisecond later."""
    with link.cursor() as cursor:
        for first_number in range(0, rows, 1_000):
            numbers = range(first_number, min(first_number + 1_000, rows))
            cursor.executemany(LOG_NEW, [_build_row(moment + timedelta(milliseconds=n)) for n in numbers])


def _build_row(moment: datetime) -> tuple[object, ...]:
    uuid = new_id(moment)
    return (str(uuid), "m", 1, "champion", "e", FEATURES, "x", 0.9, None, None, 1.0, str(uuid), moment, moment)


def _connect(settings: Settings) -> "pymysql.Connection[Any]":
    port, password = settings.mariadb_port, settings.db_password("api")
    return pymysql.connect(
        host="127.0.0.1", port=port, user="evergreen_api", password=password, database=PLATFORM_DB, autocommit=True
    )
