"""Which columns batch scoring takes of a file, and which it can do without."""

import pytest

from pipelines.batch_scoring.sources import Source
from pipelines.spec import ModelSpec
from utils.errors import MissingColumns

SPEC = ModelSpec.parse(
    {
        "name": "rides",
        "task": "regression",
        "entity": "station",
        "source": {"event_time": "day", "time_of_day": "hour", "available_at": "known", "map": {"cnt": "rides"}},
        "label": {"column": "rides"},
        "features": {"columns": {"hour": {"type": "numeric"}, "temperature": {"type": "numeric"}}},
    },
    file="rides.yaml",
)


def source(*names: str) -> Source:
    return Source.of("file", names, lambda wanted: iter(()), spec=SPEC)


def test_times_and_label_of_a_complete_file_are_told_from_what_scoring_reads() -> None:
    taken = source("station", "day", "hour", "known", "temperature", "cnt")
    assert list(taken.columns.taken) == ["station", "day", "hour", "temperature"]
    assert (taken.spec.timed, taken.spec.source.time_of_day, taken.spec.source.available_at) == (True, "hour", None)


def test_rows_without_a_date_are_taken_as_they_are() -> None:
    taken = source("station", "hour", "temperature")
    assert list(taken.columns.taken) == ["station", "hour", "temperature"]
    assert (taken.spec.timed, taken.spec.source.time_of_day) == (False, None)


def test_a_missing_feature_is_refused() -> None:
    with pytest.raises(MissingColumns, match="temperature"):
        source("station", "day", "hour")
