"""Reads at a point in time, from LOAD DATA to the last column, against a short reference implementation.

Hypothesis generates 2,000 histories. Each is one entity in a shared store, since a database per history would take
minutes. A failure prints the history that was read differently.
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

Entry = tuple[datetime, datetime, int]  # event time, availability time, value


@dataclass(frozen=True, slots=True)
class History:
    """The history of one entity, and the point in time of a reader.

    features: the entries of each load.
    labels: the entries of each load.
    window_end: entries that became available later are unknown to the reader.
    until: the last event time of labels.
    """

    features: tuple[tuple[Entry, ...], ...]
    labels: tuple[tuple[Entry, ...], ...]
    window_end: datetime
    until: datetime


HOUR = st.integers(0, 24 * 12).map(lambda hours: T0 + timedelta(hours=hours))
DAY = st.integers(0, 12).map(lambda days: T0 + timedelta(days=days))  # few values, so that ties are common
MOMENT = st.one_of(DAY, DAY, HOUR)
LATE = st.one_of(st.just(timedelta(0)), st.integers(0, 8).map(lambda days: timedelta(days=days)))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw a history. Each pair of event and availability time has one value, in any number of the loads."""

    def draw_loads(most: int) -> tuple[tuple[Entry, ...], ...]:
        events = draw(st.lists(MOMENT, max_size=most))
        values = {(event, event + draw(LATE)): draw(st.integers(0, 3)) for event in events}
        return tuple(tuple((*key, value) for key, value in values.items() if draw(st.booleans())) for _ in range(LOADS))

    end = draw(DAY)
    return History(draw_loads(8), draw_loads(4), end, end - draw(st.sampled_from([timedelta(0), timedelta(days=2)])))


def generate_histories() -> list[History]:
    collected: list[History] = []

    @examples(
        max_examples=HISTORIES,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(histories())
    def collect(history: History) -> None:
        collected.append(history)

    collect()
    return collected


def entries_known_at(entries: list[Entry], moment: datetime) -> list[Entry]:
    return [row for row in entries if row[0] <= moment and row[1] <= moment]


def expected(history: History, loads: int) -> dict[datetime, tuple[str, float | None]]:
    """The reference: a mapping of label time to (label, feature), after the first `loads` loads."""
    features = [row for part in history.features[:loads] for row in part]
    labels = [row for part in history.labels[:loads] for row in part]
    outcomes = {}
    for event in {row[0] for row in labels if row[0] <= history.until}:
        versions = [row for row in labels if row[0] == event and row[1] <= history.window_end]
        if versions:
            fresh = [row for row in entries_known_at(features, event) if event - row[0] <= MAX_AGE]
            newest = max(versions, key=lambda row: row[1])
            outcomes[event] = (f"v{newest[2]}", float(max(fresh)[2]) if fresh else None)
    return outcomes


def test_two_thousand_histories_are_read_like_the_reference(settings: Settings, new_schema) -> None:
    all_histories = generate_histories()
    assert len(all_histories) >= HISTORIES
    schema = new_schema(max_age=MAX_AGE)
    for number in range(LOADS):
        loads_of_entities = [(f"h{i:05}", h.features[number], h.labels[number]) for i, h in enumerate(all_histories)]
        features = [feature(e, t, v, available_at=k) for e, rows_, _ in loads_of_entities for t, k, v in rows_]
        labels = [label(e, t, f"v{v}", available_at=k) for e, _, rows_ in loads_of_entities for t, k, v in rows_]
        load(settings, schema, features, labels, own_times=True)
    frames: dict[tuple[datetime, datetime, int], dict[str, pd.DataFrame]] = {}
    different = []
    for number, history in enumerate(all_histories):
        for count in range(1, LOADS + 1):
            point = (history.window_end, history.until, count)
            if point not in frames:
                frame = training_frame(
                    settings, schema, start=None, until=history.until, window_end=history.window_end, commit_seq=count
                )
                frames[point] = {str(entity): rows for entity, rows in frame.groupby("entity_id")}
            entity_frame = frames[point].get(f"h{number:05}")
            actual = {}
            for row in [] if entity_frame is None else entity_frame.to_dict("records"):
                amount = None if pd.isna(row["amount"]) else row["amount"]
                actual[row["event_time"].to_pydatetime()] = (row["outcome"], amount)
            if actual != expected(history, count):
                different.append((history, count, actual, expected(history, count)))
    assert not different, different[0]


def test_one_entity_with_thousands_of_rows_is_read_like_the_reference(settings: Settings, new_schema) -> None:
    schema = new_schema(max_age=MAX_AGE)
    entries = [(T0 + timedelta(minutes=7 * n), T0 + timedelta(minutes=7 * n + (n * 37) % 900), n) for n in range(5_000)]
    label_times = [T0 + timedelta(minutes=111 * n) for n in range(300)]
    load(settings, schema, [feature("a", t, v, available_at=k) for t, k, v in entries], own_times=True)
    load(settings, schema, labels=[label("a", t, "yes") for t in label_times])
    frame = training_frame(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=2)
    reference = [max(entries_known_at(entries, moment), default=(None, None, None))[2] for moment in label_times]
    assert frame["amount"].astype(object).where(frame["amount"].notna(), None).to_list() == reference


def test_rows_do_not_depend_on_the_number_of_parts_they_are_read_in(
    settings: Settings, new_schema, monkeypatch
) -> None:
    schema = new_schema()
    entities = ["a", "A", "a ", "b'; --", "100%", "back\\slash", "%s", "ünï 💚", "z" * 64, "0", "_", '"q"']
    days = [T0 + timedelta(days=n) for n in range(4)]
    features = [feature(e, t, n) for n, e in enumerate(entities) for t in days]
    load(settings, schema, features, [label(e, t + timedelta(hours=1), "yes") for e in entities for t in days])
    whole = state(settings, schema, 1)
    window: dict[str, Any] = {"start": None, "until": FOREVER, "window_end": FOREVER, "commit_seq": 1}
    frame = training_frame(settings, schema, **window)
    assert frame["amount"].to_list() == [float(entities.index(entity)) for entity in frame["entity_id"]]
    for labels, parts in ((1, len(entities)), (5, 6), (len(features), 1)):
        monkeypatch.setattr(point_in_time, "CHUNK_LABELS", labels)
        assert len(list(training_rows(settings, schema, **window))) == parts
        assert state(settings, schema, 1) == whole


def test_the_look_up_of_the_service_returns_the_newest_features_of_each_entity(settings: Settings, new_schema) -> None:
    schema, client = new_schema(), Client(settings)
    later = T0 + timedelta(days=1)
    load(settings, schema, [feature("a", T0, 1), feature("a", later, 2), feature("b'%", T0, None)])
    features = client.run(lambda link: online.latest(link, schema, ["a", "b'%", "nobody"], at=later))
    assert features == {"a": (2.0, "k", None), "b'%": (None, "k", None)}
    assert client.run(lambda link: online.latest(link, schema, [], at=later)) == {}
    client.close()


@pytest.mark.parametrize("timed", [True, False])
def test_the_look_up_uses_a_row_exactly_if_a_training_at_the_same_time_would(
    settings: Settings, new_schema, timed
) -> None:
    schema, client = new_schema(timed=timed), Client(settings)
    ages = [timedelta(), timedelta(days=2), timedelta(days=90), timedelta(days=90, microseconds=1)]
    event, label_times = (T0, [T0 + age for age in ages]) if timed else (TIMELESS, [TIMELESS])
    late = {"available_at": event + timedelta(days=2)}
    load(
        settings,
        schema,
        [feature("a", event, 1, available_at=event), feature("late", event, 2, **late)],
        own_times=True,
    )
    load(settings, schema, labels=[label(entity, t, "yes") for entity in ("a", "late") for t in label_times])
    frame = training_frame(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=2)
    for row in frame.to_dict("records"):
        entity_ids, at = [row["entity_id"]], row["event_time"].to_pydatetime() if timed else FOREVER
        (features,) = client.run(partial(online.latest, schema=schema, entity_ids=entity_ids, at=at)).values()
        assert (features or (None,))[0] == (None if pd.isna(row["amount"]) else row["amount"]), (entity_ids, at)
    client.close()


def test_a_repeated_value_is_not_hidden_by_a_correction_between_the_two(settings: Settings, new_schema) -> None:
    schema = new_schema()
    for late, value in ((1, 7), (3, 7), (2, 8)):
        load(settings, schema, [feature("a", T0, value, available_at=T0 + timedelta(days=late))], own_times=True)
    load(settings, schema, labels=[label("a", T0 + timedelta(days=d), "yes") for d in (1, 2, 3)])
    frame = training_frame(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=4)
    assert frame["amount"].to_list() == [7, 8, 7]


def state(settings: Settings, schema: StoreSchema, commit_seq: int) -> str:
    batches = training_rows(settings, schema, start=None, until=FOREVER, window_end=FOREVER, commit_seq=commit_seq)
    return content_hash(batches)


def test_every_state_can_be_read_again_exactly_while_four_writers_load_and_correct(
    settings: Settings, new_schema
) -> None:
    schema = new_schema()
    digests: dict[int, Any] = {}
    errors: list[Any] = []

    def write(writer: int) -> None:
        try:
            for turn in range(6):
                day = T0 + timedelta(days=turn)
                own = [feature(f"{writer}-{n}", day, turn) for n in range(40)]
                shared = [feature(f"s-{n}", T0, 10 * writer + turn) for n in range(40)]  # every writer corrects these
                labels = [
                    label(f"{prefix}-{n}", day + timedelta(days=1), "yes")
                    for prefix in (writer, "s")
                    for n in range(40)
                ]
                load(settings, schema, own + shared, labels, now=T0 + timedelta(days=30, hours=turn))
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        newest = loads.latest_commit_seq(settings, schema.model)
        digests.setdefault(newest, state(settings, schema, newest))
        assert all(state(settings, schema, seq) == digest for seq, digest in list(digests.items())[-3:])
    for writer in writers:
        writer.join()
    assert not errors
    assert loads.latest_commit_seq(settings, schema.model) == 24
    assert {seq: state(settings, schema, seq) for seq in digests} == digests
    assert len(digests) > 3


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
    plans = {name: rows(settings, f"EXPLAIN PARTITIONS {query}") for name, query in queries.items()}
    assert {name: plan[0][3] for name, plan in plans.items()} == {
        "labels": "p202405,p202406",
        "features": "p202404,p202405,p202406",
    }
