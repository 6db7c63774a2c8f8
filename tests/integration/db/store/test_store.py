"""The store on a real MariaDB: batches, corrections, availability times, and reads of any past state."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from db.session import session
from db.store import appending, loads
from db.store.batch import LoadReport, Origin
from db.store.point_in_time import training_frame
from db.store.schema import TIMELESS, StoreSchema
from tests.servers import free_port
from utils.errors import AccessDenied, DataRefused, NotFound, StackError, Unreachable
from utils.settings import STORE_DB, Settings

DAY = timedelta(days=1)
T0 = datetime(2026, 9, 1)
NOW = datetime(2026, 10, 1, 12)
FOREVER = datetime(2100, 1, 1)


def feature(entity: str, event_time: datetime, amount: float | None, **values: Any) -> dict[str, Any]:
    return {"entity_id": entity, "event_time": event_time, "amount": amount, "kind": "k", "note": None} | values


def label(entity: str, event_time: datetime, outcome: str, **values: Any) -> dict[str, Any]:
    return {"entity_id": entity, "event_time": event_time, "outcome": outcome} | values


def load(
    settings: Settings,
    schema: StoreSchema,
    features: Sequence[dict[str, Any]] = (),
    labels: Sequence[dict[str, Any]] = (),
    *,
    now: datetime = NOW,
    own_times: bool = False,
) -> LoadReport:
    return appending.append(
        settings,
        schema,
        features=pd.DataFrame(features) if features else None,
        labels=pd.DataFrame(labels) if labels else None,
        source="test",
        content_sha256="0" * 64,
        caused_by="test",
        now=now,
        available_at_given=own_times,
    )


def read_frame(settings: Settings, schema: StoreSchema, commit_seq: int | None = None, **window: Any) -> pd.DataFrame:
    window = {"start": None, "until": FOREVER, "window_end": FOREVER} | window
    seq = loads.latest_commit_seq(settings, schema.model) if commit_seq is None else commit_seq
    return training_frame(settings, schema, commit_seq=seq, **window)


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with session(settings, "reader", STORE_DB) as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def batches(settings: Settings, schema: StoreSchema) -> list[tuple[Any, ...]]:
    return rows(
        settings, f"SELECT state, commit_seq FROM evergreen.load_batch WHERE model = '{schema.model}' ORDER BY batch_id"
    )


def origin(**fields: Any) -> Origin:
    return replace(Origin("test", "0" * 64, "test", NOW), **fields)


def staged_table(entities: list[str], amount: float = 1.0) -> pa.Table:
    return pa.Table.from_pylist([feature(entity, T0, amount, available_at=T0) for entity in entities])


def test_a_loaded_row_is_read_back_with_its_label(settings, new_schema):
    schema = new_schema()
    report = load(settings, schema, [feature("a", T0, 1.5)], [label("a", T0 + DAY, "yes")])
    assert (report.features_added, report.labels_added, report.commit_seq) == (1, 1, 1)
    (row,) = read_frame(settings, schema).to_dict("records")
    assert row == {
        "entity_id": "a",
        "event_time": T0 + DAY,
        "outcome": "yes",
        "amount": 1.5,
        "kind": "k",
        "note": None,
    }


@pytest.mark.parametrize(
    "note",
    ["tab\there", "line\nbreak", "back\\slash", r"\N", "quote'\"", "ünïcödé 💚", " spaces ", "a\r\nb", "\\", "\x00"],
)
def test_text_is_read_back_unchanged(settings, new_schema, note):
    schema = new_schema(timed=False)
    load(settings, schema, [feature("a", TIMELESS, 1, note=note)], [label("a", TIMELESS, "yes")])
    assert read_frame(settings, schema)["note"].to_list() == [note]
    assert load(settings, schema, [feature("a", TIMELESS, 1, note=note)]).commit_seq is None


@pytest.mark.parametrize("amount", [0.1, 0.0, 1e300, 5e-324, 1 / 3, 123456789.123456789, 2.0**53])
def test_numbers_are_read_back_to_the_last_bit(settings, new_schema, amount):
    schema = new_schema(timed=False)
    load(settings, schema, [feature("a", TIMELESS, amount)], [label("a", TIMELESS, "yes")])
    assert read_frame(settings, schema)["amount"].to_numpy().tobytes() == np.float64(amount).tobytes()


def test_upper_and_lower_case_and_spaces_make_different_entities(settings, new_schema):
    schema = new_schema()
    report = load(settings, schema, [feature(entity, T0, 1) for entity in ("a", "A", "a ")])
    assert report.features_added == 3


def test_the_same_rows_twice_change_nothing_and_leave_no_trace(settings, new_schema):
    schema = new_schema()
    data = [feature("a", T0, None), feature("b", T0, 2)], [label("a", T0, "yes")]
    load(settings, schema, *data)
    report = load(settings, schema, *data, now=NOW + DAY)
    assert (report.features_added, report.labels_added, report.unchanged, report.commit_seq) == (0, 0, 3, None)
    assert batches(settings, schema) == [("committed", 1)]


def test_a_changed_row_is_a_correction_available_from_its_load_on(settings, new_schema):
    schema = new_schema()
    load(settings, schema, [feature("a", T0, 1)], [label("a", T0 + DAY, "yes"), label("a", NOW + DAY, "no")])
    report = load(settings, schema, [feature("a", T0, 2), feature("b", T0, 1)])
    assert (report.features_added, report.corrections) == (2, 1)
    assert read_frame(settings, schema)["amount"].to_list() == [1, 2]


def test_a_value_that_goes_missing_or_comes_back_is_a_correction(settings, new_schema):
    schema = new_schema()
    load(settings, schema, [feature("a", T0, 1)])
    assert load(settings, schema, [feature("a", T0, None)], now=NOW + DAY).corrections == 1
    assert load(settings, schema, [feature("a", T0, 1)], now=NOW + 2 * DAY).corrections == 1
    assert load(settings, schema, [feature("a", T0, 1)], now=NOW + 3 * DAY).commit_seq is None


def test_two_corrections_at_the_same_time_stay_in_order(settings, new_schema):
    schema = new_schema()
    for amount in (1, 2, 3):
        load(settings, schema, [feature("a", T0, amount)], [label("a", NOW + DAY, "yes")])
    assert read_frame(settings, schema)["amount"].to_list() == [3]


def test_given_availability_times_are_kept(settings, new_schema):
    schema = new_schema()
    late = feature("a", T0, 1, available_at=T0 + 5 * DAY)
    load(settings, schema, [late], own_times=True)
    load(settings, schema, labels=[label("a", T0 + 4 * DAY, "no"), label("a", T0 + 5 * DAY, "yes")])
    assert read_frame(settings, schema)["amount"].fillna(-1).to_list() == [-1, 1]
    assert load(settings, schema, [late], own_times=True).commit_seq is None


def test_another_value_for_a_given_availability_time_is_refused(settings, new_schema):
    schema = new_schema()
    load(settings, schema, [feature("a", T0, 1, available_at=T0)], own_times=True)
    with pytest.raises(DataRefused, match=r"entity 'a' at 2026-09-01 .* a correction needs a later time"):
        load(
            settings,
            schema,
            [feature("a", T0, 2, available_at=T0), feature("b", T0, 1, available_at=T0)],
            own_times=True,
        )
    assert batches(settings, schema) == [("committed", 1)]
    assert load(settings, schema, [feature("a", T0, 2, available_at=T0 + DAY)], own_times=True).corrections == 1


def test_a_load_that_contradicts_itself_across_chunks_is_refused(settings, new_schema):
    schema = new_schema()
    with appending.open_batch(settings, schema, origin()) as batch:
        batch.add(batch.prepare(features=staged_table(["a"])))
        with pytest.raises(DataRefused, match="entity 'a'"):
            batch.add(batch.prepare(features=staged_table(["a"], amount=2)))
    assert rows(settings, f"SELECT COUNT(*) FROM {schema.features_table}") == [(0,)]


def test_a_load_is_visible_whole_or_not_at_all(settings, new_schema):
    schema = new_schema()
    load(settings, schema, labels=[label(entity, T0, "yes") for entity in "abc"])
    with appending.open_batch(settings, schema, origin()) as batch:
        batch.add(batch.prepare(features=staged_table(["a"])))
        batch.add(batch.prepare(features=staged_table(["b"])))
        assert read_frame(settings, schema)["amount"].isna().all()
        assert rows(settings, f"SELECT COUNT(*) FROM {schema.latest_table}") == [(0,)]
        report = batch.commit()
    assert (report.rows, report.features_added, report.commit_seq) == (2, 2, 2)
    assert read_frame(settings, schema)["amount"].notna().to_list() == [True, True, False]
    assert rows(settings, f"SELECT entity_id FROM {schema.latest_table} ORDER BY 1") == [("a",), ("b",)]


def test_a_load_that_fails_leaves_no_rows(settings, new_schema):
    schema = new_schema()
    with suppress(RuntimeError), appending.open_batch(settings, schema, origin()) as batch:
        batch.add(batch.prepare(features=staged_table(["a", "b"])))
        raise RuntimeError
    assert batches(settings, schema) == [("abandoned", None)]
    assert rows(settings, f"SELECT COUNT(*) FROM {schema.features_table}") == [(0,)]


def test_the_next_load_deletes_the_rows_of_a_killed_one(settings, new_schema):
    schema = new_schema()
    turn_lost = pytest.raises(StackError, match="its turn: run it again")
    with turn_lost, appending.open_batch(settings, schema, origin()) as batch:
        batch.add(batch.prepare(features=staged_table(["a", "b"])))
        with session(settings, "root", "information_schema") as connection:
            (connection_id,) = connection.scalars(
                text("SELECT id FROM processlist WHERE user = 'evergreen_loader'")
            ).all()
            connection.execute(text(f"KILL {connection_id}"))
        # This uses the batch's other connection, which was not killed.
        batch.add(batch.prepare(features=staged_table(["c"])))
    assert batches(settings, schema) == [("open", None)]
    assert rows(settings, f"SELECT COUNT(*) FROM {schema.features_table}") == [(2,)]
    report = load(settings, schema, [feature("a", T0, 7)])
    assert (report.features_added, report.corrections, report.commit_seq) == (1, 0, 1)
    assert batches(settings, schema) == [("abandoned", None), ("committed", 1)]
    assert rows(settings, f"SELECT entity_id, amount FROM {schema.features_table}") == [("a", 7.0)]


def test_loads_of_one_model_take_turns(settings, new_schema):
    schema = new_schema()
    reports: list[LoadReport] = []
    second_load = threading.Thread(target=lambda: reports.append(load(settings, schema, [feature("b", T0, 1)])))
    with appending.open_batch(settings, schema, origin()) as batch:
        second_load.start()
        batch.add(batch.prepare(features=staged_table(["a"])))
        second_load.join(0.3)
        assert second_load.is_alive()
        assert batch.commit().commit_seq == 1
    second_load.join()
    assert [report.commit_seq for report in reports] == [2]
    assert batches(settings, schema) == [("committed", 1), ("committed", 2)]


def test_a_past_state_is_read_again_exactly_after_later_loads(settings, new_schema):
    schema = new_schema()
    load(settings, schema, [feature("a", T0, 1)], [label("a", T0 + DAY, "yes")])
    first_state = read_frame(settings, schema)
    load(settings, schema, [feature("a", T0 + DAY, 2)], [label("a", T0 + DAY, "no"), label("b", T0, "no")])
    assert read_frame(settings, schema)["outcome"].to_list() == ["no", "no"]
    pd.testing.assert_frame_equal(read_frame(settings, schema, commit_seq=1), first_state)
    assert read_frame(settings, schema, commit_seq=0).empty


def test_a_correction_of_a_label_counts_from_its_availability_time_on(settings, new_schema):
    schema = new_schema()
    load(settings, schema, labels=[label("a", T0, "yes")])
    load(settings, schema, labels=[label("a", T0, "no")])
    assert read_frame(settings, schema, window_end=NOW - DAY)["outcome"].to_list() == ["yes"]
    assert read_frame(settings, schema, window_end=NOW)["outcome"].to_list() == ["no"]


def test_a_window_holds_the_labels_after_its_start_up_to_its_end(settings, new_schema):
    schema = new_schema()
    load(settings, schema, labels=[label("a", T0 + n * DAY, "yes") for n in range(4)])
    window = read_frame(settings, schema, start=T0, until=T0 + 2 * DAY)
    assert window["event_time"].to_list() == [T0 + DAY, T0 + 2 * DAY]


def test_features_older_than_max_age_count_as_missing(settings, new_schema):
    schema = new_schema(max_age=2 * DAY)
    labels = [label("a", T0 + 2 * DAY, "yes"), label("a", T0 + 2 * DAY + timedelta(microseconds=1), "yes")]
    load(settings, schema, [feature("a", T0, 1)], labels)
    assert read_frame(settings, schema)["amount"].isna().to_list() == [False, True]
    frame_of_window = read_frame(settings, schema, start=T0 + DAY)
    assert frame_of_window["amount"].isna().to_list() == [False, True]


def test_an_empty_store_reads_as_an_empty_frame_with_all_columns(settings, new_schema):
    frame = read_frame(settings, new_schema())
    assert frame.empty
    assert list(frame.columns) == ["entity_id", "event_time", "outcome", "amount", "kind", "note"]


def test_data_without_time_is_joined_in_its_state_at_the_window_end(settings, new_schema):
    schema = new_schema(timed=False)
    rows_without_time = [feature("a", TIMELESS, 1)], [label("a", TIMELESS, "yes"), label("b", TIMELESS, "no")]
    load(settings, schema, *rows_without_time)
    load(settings, schema, [feature("a", TIMELESS, 2)])
    assert read_frame(settings, schema, window_end=NOW - DAY)["amount"].fillna(-1).to_list() == [1, -1]
    assert read_frame(settings, schema, window_end=NOW)["amount"].fillna(-1).to_list() == [2, -1]


def test_the_online_store_holds_the_newest_row_of_each_entity(settings, new_schema):
    schema = new_schema()
    load(settings, schema, [feature("a", T0 + DAY, 2), feature("a", T0, 1), feature("b", T0, 5)])
    load(settings, schema, [feature("a", T0 - DAY, 0), feature("b", T0, 6), feature("c", T0, 7)])
    latest = f"SELECT entity_id, amount, event_time, available_at FROM {schema.latest_table} ORDER BY 1"
    assert rows(settings, latest) == [
        ("a", 2.0, T0 + DAY, T0 + DAY),
        ("b", 6.0, T0, NOW),
        ("c", 7.0, T0, T0),
    ]


def test_random_histories_are_read_according_to_the_rule(settings, new_schema):
    """Test the whole path, from LOAD DATA to connectorx, against the rule written in Python."""
    random = np.random.default_rng(5)
    schema = new_schema(max_age=5 * DAY)
    keys = {tuple(row) for row in random.integers(0, (8, 20, 20), (400, 3)).tolist()}
    features = [
        feature(f"e{e}", T0 + t * DAY, n, available_at=T0 + k * DAY) for n, (e, t, k) in enumerate(sorted(keys))
    ]
    label_keys = {tuple(row) for row in random.integers(0, (9, 20), (80, 2)).tolist()}
    load(settings, schema, features, own_times=True)
    load(settings, schema, labels=[label(f"e{e}", T0 + t * DAY, "yes") for e, t in label_keys])
    frame = read_frame(settings, schema)
    assert len(frame) == len(label_keys)
    for entity, moment, amount in zip(frame["entity_id"], frame["event_time"], frame["amount"], strict=True):
        usable = [
            (row["event_time"], row["available_at"], row["amount"])
            for row in features
            if row["entity_id"] == entity
            and max(row["event_time"], row["available_at"]) <= moment <= row["event_time"] + 5 * DAY
        ]
        assert (amount == max(usable)[2]) if usable else np.isnan(amount)


def test_a_wrong_password_is_refused_quickly_and_never_shown(settings, new_schema):
    wrong_password = settings.model_copy(update={"db_pipeline_password": SecretStr("guessed")})
    with pytest.raises(AccessDenied) as refused:
        read_frame(wrong_password, new_schema(), commit_seq=1)
    assert "guessed" not in str(refused.value)


def test_a_server_that_is_down_is_unreachable_for_loading_and_reading(settings, new_schema):
    schema = new_schema()
    without_mariadb = settings.model_copy(update={"mariadb_port": free_port()})
    with pytest.raises(Unreachable):
        load(without_mariadb, schema, [feature("a", T0, 1)])
    with pytest.raises(Unreachable):
        read_frame(without_mariadb, schema, commit_seq=1)


def test_a_query_that_fails_in_the_fast_reader_has_an_error_that_names_migrate(settings, new_schema):
    schema = replace(new_schema(), model="nobody")
    with pytest.raises(NotFound, match="evergreen migrate") as failure:
        read_frame(settings, schema, commit_seq=1)
    assert settings.db_password("pipeline") not in str(failure.value)
