"""The split of rows into training, validation and test."""

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
    return pd.DataFrame(
        {
            "entity_id": [f"s{i}" for i in range(len(days))],
            "event_time": [UNTIL - timedelta(days=day) for day in days],
            "closed": ["yes" if i % 2 else "no" for i in range(len(days))],
        }
    )


@given(st.lists(st.floats(0, 100), max_size=40))
def test_parts_by_time_are_disjoint_complete_and_in_order(days: list[float]) -> None:
    frame = rows([*days, 1, 12, 50, 51])
    parts = split_rows(frame, spec=TIMED, until=UNTIL)
    assert sorted([*parts.train.index, *parts.validation.index, *parts.test.index]) == list(frame.index)
    assert parts.train["event_time"].max() < parts.validation["event_time"].min()
    assert parts.validation["event_time"].max() < parts.test["event_time"].min()
    assert parts.test["event_time"].min() > UNTIL - timedelta(days=10)


def test_an_entity_stays_in_the_same_part_when_rows_are_added() -> None:
    few = rows([0.0] * 300).assign(event_time=datetime(1970, 1, 1))
    many = pd.concat([few, few.assign(entity_id=few["entity_id"] + "x")])
    small, large = (split_rows(frame, spec=TIMELESS, until=UNTIL) for frame in (few, many))
    for part in ("train", "validation", "test"):
        assert set(getattr(small, part)["entity_id"]) <= set(getattr(large, part)["entity_id"])
    assert 0.15 < len(large.test) / len(many) < 0.25


def test_the_shares_of_entities_differ_between_models() -> None:
    assert entity_share("a", "e1") != entity_share("b", "e1")
    assert entity_share("a", "e1") == entity_share("a", "e1")


def test_an_empty_part_is_refused_with_its_name() -> None:
    with pytest.raises(MissingLabels, match="validation"):
        split_rows(rows([1, 50, 51]), spec=TIMED, until=UNTIL)


def test_a_class_without_training_rows_is_refused_by_name() -> None:
    with pytest.raises(MissingLabels, match="yes"):
        split_rows(rows([1, 12, 50]), spec=TIMED, until=UNTIL)
