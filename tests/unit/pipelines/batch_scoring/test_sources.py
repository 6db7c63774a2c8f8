"""The columns of a file that batch scoring reads, and the columns that may be missing."""

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
    return Source.of("file", names, lambda columns: iter(()), spec=SPEC)


def test_label_and_availability_time_of_a_complete_file_are_not_read() -> None:
    result = source("station", "day", "hour", "known", "temperature", "cnt")
    assert list(result.columns.taken) == ["station", "day", "hour", "temperature"]
    assert (result.spec.timed, result.spec.source.time_of_day, result.spec.source.available_at) == (True, "hour", None)


def test_rows_without_a_date_are_read_as_rows_without_time() -> None:
    result = source("station", "hour", "temperature")
    assert list(result.columns.taken) == ["station", "hour", "temperature"]
    assert (result.spec.timed, result.spec.source.time_of_day) == (False, None)


def test_a_missing_feature_is_refused() -> None:
    with pytest.raises(MissingColumns, match="temperature"):
        source("station", "day", "hour")
