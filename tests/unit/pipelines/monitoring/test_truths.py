"""The truth of each logged prediction, and the truths that may judge a version."""

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from pipelines.monitoring.truths import Truths
from pipelines.spec import ModelSpec

NOON = datetime(2026, 9, 30, 12)
DAY = timedelta(days=1)
SPEC = ModelSpec.parse(
    {
        "name": "shops",
        "task": "multiclass",
        "entity": "shop",
        "source": {"event_time": "day"},
        "label": {"column": "size", "classes": ["S", "M", "L"]},
        "features": {"columns": {"visits": {"type": "numeric"}}},
        "monitoring": {"performance": {"match": "1d"}},
    },
    file="shops.yaml",
)
LABELS = pd.DataFrame(
    {
        "entity_id": ["a", "b", "c"],
        "event_time": [NOON - DAY / 2, NOON - DAY / 4, NOON - 3 * DAY],
        "truth": ["S", "M", "L"],
        "commit_seq": [1, 2, 1],
    }
)
PREDICTIONS = pd.DataFrame({"prediction_id": ["1", "2", "3"], "entity_id": ["a", "b", "c"], "created_at": [NOON] * 3})


def truths(reported: dict[str, str] | None = None, labels: pd.DataFrame = LABELS) -> Truths:
    return Truths(SPEC, labels, pd.Series(reported or {}, dtype=object))


def training(commit_seq: int, window_end: datetime) -> Any:
    """The fields of a run that limit the labels it could learn from."""
    return SimpleNamespace(commit_seq=commit_seq, window_end=window_end, spec=SPEC)


def truths_by_id(source: Truths) -> dict[Any, str]:
    return source.add_truths(PREDICTIONS).set_index("prediction_id")["truth"].to_dict()


def test_only_predictions_with_a_known_truth_are_left() -> None:
    assert truths_by_id(truths()) == {"1": "S", "2": "M"}
    assert "truth" not in PREDICTIONS


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"1": "L"}, {"1": "L", "2": "M"}),
        ({"3": "L"}, {"1": "S", "2": "M", "3": "L"}),
        ({"1": "enormous"}, {"1": "S", "2": "M"}),  # not a class of the model
    ],
)
def test_a_reported_truth_takes_precedence_over_the_label(reported: dict[str, str], expected: dict[str, str]) -> None:
    assert truths_by_id(truths(reported)) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (None, {"1": "S", "2": "M"}),
        (training(1, NOON), {"2": "M"}),  # the other label was loaded after its start
        (training(2, NOON), {}),
        (training(2, NOON - DAY / 3), {"2": "M"}),  # the other label is newer than its window
        (training(0, NOON), {"1": "S", "2": "M"}),
    ],
)
def test_a_label_that_a_training_could_read_does_not_judge_its_version(run: Any, expected: dict[str, str]) -> None:
    assert truths_by_id(truths().not_learned_by(run)) == expected


def test_a_label_that_either_of_two_trainings_could_read_judges_neither_version() -> None:
    one, other = training(1, NOON), training(2, NOON - DAY / 3)
    assert truths_by_id(truths().not_learned_by(one).not_learned_by(other)) == {"2": "M"}
    assert truths_by_id(truths().not_learned_by(one).not_learned_by(training(2, NOON))) == {}


def test_a_reported_truth_judges_every_version() -> None:
    assert truths_by_id(truths({"1": "L"}).not_learned_by(training(2, NOON))) == {"1": "L"}


def test_there_is_no_truth_without_a_label_or_a_report() -> None:
    assert truths(labels=LABELS.iloc[:0]).empty
    assert not truths({"1": "L"}, labels=LABELS.iloc[:0]).empty
    assert not truths().empty
    assert truths_by_id(truths(labels=LABELS.iloc[:0])) == {}
