"""Which columns of a file batch scoring reads, and which columns may be missing."""

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


def build_source(*column_names: str) -> Source:
    return Source.of("file", column_names, lambda columns: iter(()), spec=SPEC)


def test_the_label_and_the_availability_time_of_a_complete_file_are_not_read() -> None:
    source = build_source("station", "day", "hour", "known", "temperature", "cnt")
    assert list(source.columns.taken) == ["station", "day", "hour", "temperature"]
    assert (source.spec.timed, source.spec.source.time_of_day, source.spec.source.available_at) == (True, "hour", None)


def test_the_rows_of_a_file_without_the_date_column_have_no_event_time() -> None:
    source = build_source("station", "hour", "temperature")
    assert list(source.columns.taken) == ["station", "hour", "temperature"]
    assert (source.spec.timed, source.spec.source.time_of_day) == (False, None)


def test_a_missing_feature_is_an_error() -> None:
    with pytest.raises(MissingColumns, match="temperature"):
        build_source("station", "day", "hour")
