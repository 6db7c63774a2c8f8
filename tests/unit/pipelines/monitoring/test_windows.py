"""Counting a window, detecting a broken source in it, and matching labels to its predictions."""

import json
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.artifact.profile import build_profile, count_by_bin
from pipelines.measures.defects import find_defects, find_rejections
from pipelines.measures.drift import PREDICTION, measure_drift, worst_first
from pipelines.monitoring.counts import WindowCounts
from pipelines.monitoring.truths import match_labels
from pipelines.monitoring.windows import EPOCH, grid, merge
from pipelines.spec import Drift, ModelSpec

DAY = timedelta(days=1)
NOON = datetime(2026, 9, 30, 12)
SPEC = ModelSpec.parse(
    {
        "name": "shops",
        "task": "multiclass",
        "entity": "shop",
        "source": {"event_time": "day"},
        "label": {"column": "size", "classes": ["S", "M", "L"]},
        "features": {
            "columns": {"visits": {"type": "numeric"}, "town": {"type": "categorical"}, "tags": {"type": "text"}},
        },
    },
    file="shops.yaml",
)


def world(rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "event_time": NOON,
            "visits": np.where(random.random(rows) < 0.05, np.nan, random.normal(100, 15, rows)),
            "town": random.choice(["Bern", "Basel", None], rows, p=[0.6, 0.3, 0.1]),
            "tags": random.choice(["new, loud", "quiet", None], rows),
        }
    )


def log_of(rows: pd.DataFrame, *, entities: list[str] | None = None) -> pa.Table:
    """`rows` in the form of the log. Every prediction is M."""
    features = json.loads(rows[["visits", "town", "tags"]].to_json(orient="records", double_precision=15))
    towns = {"Bern", "Basel", None}
    warnings = [["unseen category: town"] if each["town"] not in towns else [] for each in features]
    return pa.table(
        {
            "entity_id": entities or [f"shop {number}" for number in range(len(rows))],
            "features": [json.dumps(each) for each in features],
            "prediction": ["M"] * len(rows),
            "warnings": [json.dumps(each) for each in warnings],
        }
    )


PROFILE: dict[str, Any] = build_profile(world(5000, 1), ["M"] * 5000, spec=SPEC)


def counts_of(*chunks: pa.Table) -> WindowCounts:
    window_counts = WindowCounts()
    for chunk in chunks:
        window_counts.add(chunk, profile=PROFILE)
    return window_counts


@given(st.lists(st.integers(0, 300), max_size=4))
def test_counts_equal_those_of_the_profile_for_every_division_of_the_log(cuts: list[int]) -> None:
    rows, bounds = world(300, 2), [0, *sorted(cuts), 300]
    whole = log_of(rows)
    window_counts = counts_of(*(whole.slice(start, end - start) for start, end in pairwise(bounds)))
    assert (window_counts.rows, window_counts.distinct) == (300, 300)
    for name, entry in PROFILE["features"].items():
        assert (window_counts.counts[name] == count_by_bin(rows[name], entry)).all(), name
    assert window_counts.counts[PREDICTION].sum() == 300


def test_repeated_requests_of_an_entity_with_the_same_features_count_once_in_any_chunk() -> None:
    rows = world(50, 3)
    window_counts = counts_of(
        log_of(rows), log_of(pd.concat([rows, rows], ignore_index=True).iloc[:80].reset_index(drop=True))
    )
    assert window_counts.rows == 130
    assert counts_of(log_of(rows), log_of(rows), log_of(rows)).distinct == 50
    assert counts_of(log_of(rows), log_of(rows, entities=[f"other {n}" for n in range(50)])).distinct == 100


def test_a_log_row_of_another_model_file_counts_with_its_known_features() -> None:
    row = {"entity_id": ["a"], "features": ['{"visits": 90, "new": [1, 2]}'], "prediction": ["L"], "warnings": ["[]"]}
    window_counts = counts_of(pa.table(row))
    assert window_counts.counts["town"][-1] == 1
    assert window_counts.counts["visits"][-1] == 0


def defects_in(rows: pd.DataFrame) -> list[str]:
    window_counts = counts_of(log_of(rows))
    drifted = frozenset(worst_first(measure_drift(PROFILE, window_counts.counts, policy=Drift())))
    return [
        f"{each.feature} {each.kind}"
        for each in find_defects(PROFILE, window_counts.counts, unseen=window_counts.unseen, drifted=drifted)
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"visits": lambda rows: rows["visits"] + 15}, []),  # the world changed by a standard deviation
        ({"visits": lambda rows: None}, ["visits missing"]),
        ({"visits": lambda rows: rows["visits"] * 60}, ["visits unit"]),
        ({"visits": lambda rows: rows["visits"] / 1000}, ["visits unit"]),
        ({"town": lambda rows: rows["town"].str.upper()}, ["town unseen"]),
        ({"town": lambda rows: rows["town"].where(rows.index % 2 == 0)}, ["town missing"]),
        ({"tags": lambda rows: None}, ["tags missing"]),
    ],
)
def test_a_broken_source_is_distinguished_from_a_changed_world(change: dict[str, Any], expected: list[str]) -> None:
    assert defects_in(world(1000, 4).assign(**change)) == expected


def test_a_few_rows_prove_no_defect() -> None:
    assert defects_in(world(40, 4).assign(visits=None)) == []


def test_rejects_are_reported_only_when_they_are_many_and_more_than_usual() -> None:
    assert find_rejections({"age": 49}, rows=0, ordinary=0.0) == []
    assert [str(each) for each in find_rejections({"age": 100}, rows=300, ordinary=0.0)] == [
        "age is refused in 25% of the rows, 0% is ordinary"
    ]
    assert find_rejections({"age": 100}, rows=300, ordinary=0.1) == []


@given(st.integers(0, 10**10), st.integers(1, 10**6))
def test_windows_lie_on_one_grid_for_every_moment(seconds: int, length: int) -> None:
    moment, window = EPOCH + timedelta(seconds=seconds), timedelta(seconds=length)
    border = grid(moment, window)
    assert border <= moment < border + window
    assert grid(border, window) == border
    assert grid(border + window, window) == border + window


@given(st.lists(st.integers(0, 400), max_size=20))
def test_merged_windows_are_neighbours_with_enough_rows_and_only_the_rest_is_left_out(sizes: list[int]) -> None:
    rows: Any = [{"distinct_count": size, "place": place} for place, size in enumerate(sizes)]
    merged = list(merge(rows, min_rows=300))
    assert all(sum(row["distinct_count"] for row in each) >= 300 for each in merged)
    assert all(sum(row["distinct_count"] for row in each[:-1]) < 300 for each in merged)
    places = [row["place"] for each in merged for row in each]
    assert places == list(range(len(places)))
    assert sum(sizes[len(places) :]) < 300


@pytest.mark.parametrize(
    ("dated", "counts_for"),
    [
        (NOON, True),  # the same moment
        (NOON - DAY, True),  # the label has only a date
        (NOON - DAY - timedelta(seconds=1), False),  # too old
        (NOON + timedelta(seconds=1), False),  # about a later moment
    ],
)
def test_a_label_holds_for_the_predictions_soon_after_it(dated: datetime, counts_for: bool) -> None:
    predictions = pd.DataFrame({"entity_id": ["b", "a"], "created_at": [NOON, NOON]})
    labels = pd.DataFrame({"entity_id": ["a"], "event_time": [dated], "truth": ["L"]})
    matched = match_labels(predictions, labels, timed=True, match=DAY)
    assert matched.isna().tolist() == [True, not counts_for]


def test_the_newest_label_before_a_prediction_holds_and_without_times_the_only_label() -> None:
    predictions = pd.DataFrame({"entity_id": ["a", "a"], "created_at": [NOON, NOON - timedelta(hours=2)]}, index=[5, 3])
    times = [NOON - timedelta(hours=hours) for hours in (3, 1)]
    labels = pd.DataFrame({"entity_id": ["a", "a"], "event_time": times, "truth": ["S", "L"]})
    assert match_labels(predictions, labels, timed=True, match=DAY).to_dict() == {5: "L", 3: "S"}
    untimed = pd.DataFrame({"entity_id": ["a"], "event_time": [EPOCH], "truth": ["M"]})
    assert match_labels(predictions, untimed, timed=False, match=DAY).to_dict() == {5: "M", 3: "M"}
