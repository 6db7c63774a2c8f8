"""Conversion of local times to UTC, compared with Python's zoneinfo."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.loading.checking import check
from pipelines.loading.columns import Columns
from pipelines.loading.times import STAMP, placed
from pipelines.spec import ModelSpec
from utils.errors import SpecInvalid

ZONES = [
    *("Europe/Zurich", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Cairo"),
    *("Asia/Beirut", "Pacific/Apia", "America/St_Johns", "Antarctica/Troll", "UTC"),
]
FILE: dict[str, Any] = {
    "name": "visits",
    "task": "binary",
    "entity": "who",
    "source": {"event_time": "at", "time_zone": "Europe/Zurich"},
    "label": {"column": "paid", "classes": ["No", "Yes"]},
    "features": {"columns": {"amount": {"type": "numeric"}}},
}


def readings(local: datetime, zone: str) -> set[datetime]:
    """The moments, in UTC, at which the clocks of `zone` show `local`. There are zero to two."""
    moments = {local.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC) for fold in (0, 1)}
    return {
        each.replace(tzinfo=None) for each in moments if each.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local
    }


@given(
    times=st.lists(st.datetimes(datetime(1975, 1, 1), datetime(2035, 12, 31)), min_size=1, max_size=20),
    zone=st.sampled_from(ZONES),
)
@example(times=[datetime(2026, 3, 29, 2, 30), datetime(2026, 10, 25, 2, 30)], zone="Europe/Zurich")
@example(times=[datetime(2011, 12, 30, 12)], zone="Pacific/Apia")  # a day that the calendar left out
@example(times=[datetime(2026, 4, 5, 1, 45), datetime(2026, 10, 4, 2, 15)], zone="Australia/Lord_Howe")  # half an hour
def test_a_local_time_is_converted_if_the_clocks_showed_it_once_and_refused_otherwise(
    times: list[datetime], zone: str
) -> None:
    columns = placed(pa.array(times, STAMP), zone=zone)
    answers = zip(times, *(column.to_pylist() for column in columns), strict=True)
    for local, utc, twice, never in answers:
        moments = readings(local, zone)
        assert (twice, never) == (len(moments) == 2, len(moments) == 0), local
        assert utc == (next(iter(moments)) if len(moments) == 1 else None), local


@given(zone=st.sampled_from(ZONES), year=st.integers(1975, 2035), minutes=st.integers(-90, 90), nth=st.integers(0, 9))
def test_times_around_a_change_of_the_clocks_are_converted_or_refused(
    zone: str, year: int, minutes: int, nth: int
) -> None:
    start = datetime(year, 1, 1, tzinfo=UTC)
    hours = [start + timedelta(hours=hour) for hour in range(365 * 24)]
    offsets = [hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours]
    changes = [hour for hour, old, new in zip(hours[1:], offsets, offsets[1:], strict=False) if old != new]
    if changes:
        moment = changes[nth % len(changes)].astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        local = moment + timedelta(minutes=minutes)
        result = placed(pa.array([local], STAMP), zone=zone)
        moments = readings(local, zone)
        assert result.utc[0].as_py() == (next(iter(moments)) if len(moments) == 1 else None)
        assert (result.twice[0].as_py(), result.never[0].as_py()) == (len(moments) == 2, not moments)


def check_times(*times: object, **source: str):
    spec = ModelSpec.parse({**FILE, "source": {**FILE["source"], **source}}, file="visits.yaml")
    rows = [{"who": f"v{i}", "at": at, "hour": "2", "amount": "1"} for i, at in enumerate(times)]
    table = pa.Table.from_pylist(rows)
    columns = Columns.of(table.column_names, spec=spec, source="f.csv")
    return check(table.select(list(columns.taken)), spec=spec, columns=columns, lines=range(2, 2 + len(rows)))


def test_times_without_an_offset_are_local_and_those_with_one_are_converted() -> None:
    result = check_times(
        "2026-07-01 12:00", "2026-01-01 12:00", "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"
    )
    assert result.rejects == []
    assert result.features["event_time"].to_pylist() == [
        datetime(2026, 7, 1, 10),
        datetime(2026, 1, 1, 11),
        datetime(2026, 10, 25, 0, 30),
        datetime(2026, 10, 25, 1, 30),
    ]


def test_times_of_parquet_files_are_local_unless_they_have_a_zone() -> None:
    noon = datetime(2026, 7, 1, 12)
    assert check_times(noon).features["event_time"].to_pylist() == [datetime(2026, 7, 1, 10)]
    assert check_times(noon.replace(tzinfo=UTC)).features["event_time"].to_pylist() == [noon]


@pytest.mark.parametrize("at", ["2026-03-29 02:30", datetime(2026, 3, 29, 2, 30)])
def test_a_time_that_the_clocks_skip_is_refused_with_the_zone_and_a_hint(at: object) -> None:
    result = check_times("2026-03-29 01:30" if isinstance(at, str) else datetime(2026, 3, 29, 1, 30), at)
    ((line, column, _, reason),) = result.rejects
    assert (line, column) == (3, "at")
    assert "does not exist in Europe/Zurich" in reason
    assert "offset" in reason
    assert result.features["event_time"].to_pylist() == [datetime(2026, 3, 29, 0, 30)]


def test_a_time_that_the_clocks_show_twice_is_refused() -> None:
    (reject,) = check_times("2026-10-25 02:30", "2026-10-25 03:00").rejects
    assert "occurs twice in Europe/Zurich" in reject[3]


def test_date_and_hour_of_two_columns_are_local_together() -> None:
    result = check_times("2026-03-28", "2026-03-29", "2026-10-25", time_of_day="hour")
    assert [reject[0] for reject in result.rejects] == [3, 4]
    assert result.features["event_time"].to_pylist() == [datetime(2026, 3, 28, 1)]


@pytest.mark.parametrize(
    ("at", "reason"), [("0999-12-31", "outside the years"), ("9999-12-31T23:30:00-01:00", "is not a time")]
)
def test_a_time_that_the_store_can_not_hold_is_refused(at: str, reason: str) -> None:
    (reject,) = check_times(at, time_zone="UTC").rejects
    assert reason in reject[3]


@pytest.mark.parametrize("zone", ["Mars/Base", "../etc/passwd", "", "CET+1x"])
def test_a_zone_that_does_not_exist_is_refused_by_its_key(zone: str) -> None:
    with pytest.raises(SpecInvalid, match=r"source\.time_zone: expected the name of a time zone"):
        ModelSpec.parse({**FILE, "source": {"event_time": "at", "time_zone": zone}}, file="visits.yaml")


@pytest.mark.parametrize("key", [{"time_zone": "Europe/Zurich"}, {"available_at": "2d"}])
def test_zone_and_lag_need_a_time(key: dict[str, str]) -> None:
    with pytest.raises(SpecInvalid, match=r"need source\.event_time"):
        ModelSpec.parse({**FILE, "source": key}, file="visits.yaml")
