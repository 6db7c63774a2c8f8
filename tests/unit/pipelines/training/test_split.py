"""The split of rows into a training, a validation and a test part."""

from datetime import datetime, timedelta

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spec import ModelSpec
from pipelines.training.split import entity_share, split_rows
from utils.errors import MissingLabels

BASE = {
    "name": "shops",
    "task": "binary",
    "entity": "shop",
    "label": {"column": "closed", "classes": ["no", "yes"]},
    "features": {"columns": {"visits": {"type": "numeric"}}},
}
TIMED = ModelSpec.parse(
    {**BASE, "source": {"event_time": "day"}, "training": {"split": {"by": "time", "validation": "5d", "test": "10d"}}},
    file="shops.yaml",
)
TIMELESS = ModelSpec.parse(BASE, file="shops.yaml")
UNTIL = pd.Timestamp("2026-03-01")


def rows(days: list[float]) -> pd.DataFrame:
    """One row per number in `days`, that many days before `UNTIL`."""
    return pd.DataFrame(
        {
            "entity_id": [f"s{i}" for i in range(len(days))],
            "event_time": [UNTIL - timedelta(days=day) for day in days],
            "closed": ["yes" if i % 2 else "no" for i in range(len(days))],
        }
    )


@given(st.lists(st.floats(0, 100), max_size=40))
def test_a_split_by_time_has_each_row_in_one_part_and_the_parts_in_order_of_time(days: list[float]) -> None:
    frame = rows([*days, 1, 12, 50, 51])
    parts = split_rows(frame, spec=TIMED, until=UNTIL)
    assert sorted([*parts.train.index, *parts.validation.index, *parts.test.index]) == list(frame.index)
    assert parts.train["event_time"].max() < parts.validation["event_time"].min()
    assert parts.validation["event_time"].max() < parts.test["event_time"].min()
    assert parts.test["event_time"].min() > UNTIL - timedelta(days=10)


def test_an_entity_stays_in_the_same_part_when_rows_are_added() -> None:
    old_rows = rows([0.0] * 300).assign(event_time=datetime(1970, 1, 1))
    all_rows = pd.concat([old_rows, old_rows.assign(entity_id=old_rows["entity_id"] + "x")])
    old_split, new_split = (split_rows(frame, spec=TIMELESS, until=UNTIL) for frame in (old_rows, all_rows))
    for part in ("train", "validation", "test"):
        assert set(getattr(old_split, part)["entity_id"]) <= set(getattr(new_split, part)["entity_id"])
    assert 0.15 < len(new_split.test) / len(all_rows) < 0.25


def test_the_share_of_an_entity_is_fixed_and_differs_between_models() -> None:
    assert entity_share("a", "e1") == entity_share("a", "e1")
    assert entity_share("a", "e1") != entity_share("b", "e1")


def test_the_error_for_an_empty_part_names_the_part() -> None:
    with pytest.raises(MissingLabels, match="validation"):
        split_rows(rows([1, 50, 51]), spec=TIMED, until=UNTIL)


def test_the_error_for_a_class_without_training_rows_names_the_class() -> None:
    with pytest.raises(MissingLabels, match="yes"):
        split_rows(rows([1, 12, 50]), spec=TIMED, until=UNTIL)
