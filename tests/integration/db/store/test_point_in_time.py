"""Reading at a point in time, from LOAD DATA to the last column, against a reference of a few lines.

2,000 histories are generated; they go into one store, as entities of their own, for a database per history would take
minutes. A history that is read differently is printed.
"""

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from db.arrow import statement
from db.driver import Client
from db.store import loads, online, point_in_time
from db.store.point_in_time import training_frame, training_queries, training_rows
from db.store.schema import TIMELESS, StoreSchema
from pipelines.runs.snapshot import content_hash
from tests.integration.db.store.test_store import feature, label, load, rows
from utils.settings import STORE_DB, Settings

HISTORIES, LOADS = 2_000, 3
T0 = datetime(2026, 3, 27)
MAX_AGE = timedelta(days=5)
FOREVER = datetime(2100, 1, 1)

Said = tuple[datetime, datetime, int]  # event time, available at, value


@dataclass(frozen=True, slots=True)
class History:
    """Of one entity: what each load says of its features and of its labels, and where a reader stands."""

    features: tuple[tuple[Said, ...], ...]
    labels: tuple[tuple[Said, ...], ...]
    window_end: datetime
    until: datetime


HOUR = st.integers(0, 24 * 12).map(lambda hours: T0 + timedelta(hours=hours))
DAY = st.integers(0, 12).map(lambda days: T0 + timedelta(days=days))  # few, so that ties are common
MOMENT = st.one_of(DAY, DAY, HOUR)
LATE = st.one_of(st.just(timedelta(0)), st.integers(0, 8).map(lambda days: timedelta(days=days)))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Each (event time, available at) has one value, told by any loads, by some of them again."""

    def told(most: int) -> tuple[tuple[Said, ...], ...]:
        events = draw(st.lists(MOMENT, max_size=most))
        values = {(event, event + draw(LATE)): draw(st.integers(0, 3)) for event in events}
        return tuple(tuple((*key, value) for key, value in values.items() if draw(st.booleans())) for _ in range(LOADS))

    end = draw(DAY)
    return History(told(8), told(4), end, end - draw(st.sampled_from([timedelta(0), timedelta(days=2)])))


def generated() -> list[History]:
    found: list[History] = []

    @examples(
        max_examples=HISTORIES,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(histories())
    def collect(history: History) -> None:
        found.append(history)

    collect()
    return found


def known(said: list[Said], moment: datetime) -> list[Said]:
    return [row for row in said if row[0] <= moment and row[1] <= moment]


def expected(history: History, loads: int) -> dict[datetime, tuple[str, float | None]]:
    """The reference: label time to label and feature, after the first `loads` loads."""
    features = [row for part in history.features[:loads] for row in part]
    labels = [row for part in history.labels[:loads] for row in part]
    found = {}
    for event in {row[0] for row in labels if row[0] <= history.until}:
        versions = [row for row in labels if row[0] == event and row[1] <= history.window_end]
        if versions:
            fresh = [row for row in known(features, event) if event - row[0] <= MAX_AGE]
            newest = max(versions, key=lambda row: row[1])
            found[event] = (f"v{newest[2]}", float(max(fresh)[2]) if fresh else None)
    return found


def test_two_thousand_histories_are_read_as_the_reference_says(settings: Settings, new_schema) -> None:
    all_histories = generated()
    assert len(all_histories) >= HISTORIES
    schema = new_schema(max_age=MAX_AGE)
    for number in range(LOADS):
        said = [(f"h{i:05}", h.features[number], h.labels[number]) for i, h in enumerate(all_histories)]
        features = [feature(e, t, v, available_at=k) for e, rows_, _ in said for t, k, v in rows_]
        labels = [label(e, t, f"v{v}", available_at=k) for e, _, rows_ in said for t, k, v in rows_]
        load(settings, schema, features, labels, given=True)
    read_by_end: dict[tuple[datetime, datetime, int], dict[str, pd.DataFrame]] = {}
    different = []
    for number, history in enumerate(all_histories):
        for count in range(1, LOADS + 1):
            stands = (history.window_end, history.until, count)
            if stands not in read_by_end:
                frame = training_frame(
                    settings, schema, start=None, until=history.until, window_end=history.window_end, commit_seq=count
                )
                read_by_end[stands] = {str(entity): rows for entity, rows in frame.groupby("entity_id")}
            found = read_by_end[stands].get(f"h{number:05}")
            got = {}
            for row in [] if found is None else found.to_dict("records"):
                amount = None if pd.isna(row["amount"]) else row["amount"]
                got[row["event_time"].to_pydatetime()] = (row["outcome"], amount)
            if got != expected(history, count):
                different.append((history, count, got, expected(history, count)))
    assert not different, different[0]


def test_one_entity_with_thousands_of_rows_is_read_as_the_reference_says(settings: Settings, new_schema) -> None:
    schema = new_schema(max_age=MAX_AGE)
    said = [(T0 + timedelta(minutes=7 * n), T0 + timedelta(minutes=7 * n + (n * 37) % 900), n) for n in range(5_000)]
    asked = [T0 + timedelta(minutes=111 * n) for n in range(300)]
    load(settings, schema, [feature("a", t, v, available_at=k) for t, k, v in said], given=True)
    load(settings, schema, labels=[label("a", t, "yes") for t in asked])
    found = training_frame(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=2)
    reference = [max(known(said, moment), default=(None, None, None))[2] for moment in asked]
    assert found["amount"].astype(object).where(found["amount"].notna(), None).to_list() == reference


def test_rows_are_the_same_however_many_parts_they_are_read_in(settings: Settings, new_schema, monkeypatch) -> None:
    schema = new_schema()
    whose = ["a", "A", "a ", "b'; --", "100%", "back\\slash", "%s", "ünï 💚", "z" * 64, "0", "_", '"q"']
    days = [T0 + timedelta(days=n) for n in range(4)]
    features = [feature(e, t, n) for n, e in enumerate(whose) for t in days]
    load(settings, schema, features, [label(e, t + timedelta(hours=1), "yes") for e in whose for t in days])
    whole = state(settings, schema, 1)
    window: dict[str, Any] = {"start": None, "until": FOREVER, "window_end": FOREVER, "commit_seq": 1}
    frame = training_frame(settings, schema, **window)
    assert frame["amount"].to_list() == [float(whose.index(entity)) for entity in frame["entity_id"]]
    for labels, parts in ((1, len(whose)), (5, 6), (len(features), 1)):
        monkeypatch.setattr(point_in_time, "CHUNK_LABELS", labels)
        assert len(list(training_rows(settings, schema, **window))) == parts
        assert state(settings, schema, 1) == whole


def test_the_newest_features_are_looked_up_by_entity_as_the_service_does(settings: Settings, new_schema) -> None:
    schema, client = new_schema(), Client(settings)
    later = T0 + timedelta(days=1)
    load(settings, schema, [feature("a", T0, 1), feature("a", later, 2), feature("b'%", T0, None)])
    found = client.run(lambda link: online.latest(link, schema, ["a", "b'%", "nobody"], at=later))
    assert found == {"a": (2.0, "k", None), "b'%": (None, "k", None)}
    assert client.run(lambda link: online.latest(link, schema, [], at=later)) == {}
    client.close()


@pytest.mark.parametrize("timed", [True, False])
def test_the_look_up_uses_a_row_just_where_a_training_of_the_same_moment_would(
    settings: Settings, new_schema, timed
) -> None:
    schema, client = new_schema(timed=timed), Client(settings)
    ages = [timedelta(), timedelta(days=2), timedelta(days=90), timedelta(days=90, microseconds=1)]
    event, asked = (T0, [T0 + age for age in ages]) if timed else (TIMELESS, [TIMELESS])
    late = {"available_at": event + timedelta(days=2)}
    load(settings, schema, [feature("a", event, 1, available_at=event), feature("late", event, 2, **late)], given=True)
    load(settings, schema, labels=[label(entity, t, "yes") for entity in ("a", "late") for t in asked])
    frame = training_frame(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=2)
    for row in frame.to_dict("records"):
        who, at = [row["entity_id"]], row["event_time"].to_pydatetime() if timed else FOREVER
        (found,) = client.run(partial(online.latest, schema=schema, entity_ids=who, at=at)).values()
        assert (found or (None,))[0] == (None if pd.isna(row["amount"]) else row["amount"]), (who, at)
    client.close()


def test_a_row_that_says_the_same_later_is_not_hidden_by_one_that_comes_between(settings: Settings, new_schema) -> None:
    schema = new_schema()
    for late, value in ((1, 7), (3, 7), (2, 8)):
        load(settings, schema, [feature("a", T0, value, available_at=T0 + timedelta(days=late))], given=True)
    load(settings, schema, labels=[label("a", T0 + timedelta(days=d), "yes") for d in (1, 2, 3)])
    found = training_frame(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=4)
    assert found["amount"].to_list() == [7, 8, 7]


def state(settings: Settings, schema: StoreSchema, commit_seq: int) -> str:
    read = training_rows(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=commit_seq)
    return content_hash(read)


def test_every_state_is_read_again_exactly_while_four_writers_load_and_correct(settings: Settings, new_schema) -> None:
    schema = new_schema()
    seen: dict[int, Any] = {}
    failed: list[Any] = []

    def write(writer: int) -> None:
        try:
            for turn in range(6):
                day = T0 + timedelta(days=turn)
                own = [feature(f"{writer}-{n}", day, turn) for n in range(40)]
                shared = [feature(f"s-{n}", T0, 10 * writer + turn) for n in range(40)]  # each corrects the others
                told = [label(f"{who}-{n}", day + timedelta(days=1), "yes") for who in (writer, "s") for n in range(40)]
                load(settings, schema, own + shared, told, now=T0 + timedelta(days=30, hours=turn))
        except Exception as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in writers:
        each.start()
    while any(each.is_alive() for each in writers):
        newest = loads.latest_commit_seq(settings, schema.model)
        seen.setdefault(newest, state(settings, schema, newest))
        assert all(state(settings, schema, seq) == digest for seq, digest in list(seen.items())[-3:])
    for each in writers:
        each.join()
    assert not failed
    assert loads.latest_commit_seq(settings, schema.model) == 24
    assert {seq: state(settings, schema, seq) for seq in seen} == seen
    assert len(seen) > 3


def test_a_window_of_thirty_days_reads_only_its_months_of_five_years(settings: Settings, new_schema) -> None:
    schema = new_schema(max_age=timedelta(days=20))
    window = {"start": datetime(2024, 5, 10), "until": datetime(2024, 6, 9), "window_end": datetime(2024, 6, 9)}
    queries = dict(zip(("labels", "features"), map(statement, training_queries(schema, **window)), strict=True))
    partitions = rows(
        settings,
        f"SELECT COUNT(*) FROM information_schema.partitions WHERE table_name = '{schema.features_table}'"
        f" AND table_schema = '{STORE_DB}'",
    )
    assert partitions[0][0] > 60
    read = {name: rows(settings, f"EXPLAIN PARTITIONS {query}") for name, query in queries.items()}
    assert {name: plan[0][3] for name, plan in read.items()} == {
        "labels": "p202405,p202406",
        "features": "p202404,p202405,p202406",
    }
