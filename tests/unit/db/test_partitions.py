from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uuid6 import uuid7

from db.partitions import by_day_of_id, by_month, day_cuts, days, first_id_of, moment_of, month_cuts, months


def test_the_months_around_a_day_cross_the_year():
    assert months(date(2026, 1, 31), back=2, ahead=1) == [
        date(2025, 11, 1),
        date(2025, 12, 1),
        date(2026, 1, 1),
        date(2026, 2, 1),
    ]


def test_days_cross_the_month():
    assert days(date(2026, 11, 29), 3) == [date(2026, 11, 29), date(2026, 11, 30), date(2026, 12, 1)]


def test_the_boundary_of_a_day_is_its_milliseconds_in_the_first_twelve_digits():
    assert str(first_id_of(datetime(2026, 11, 21))) == "01a1fb67-1800-0000-0000-000000000000"


def test_an_id_made_now_lies_between_the_boundaries_of_now():
    new_id = uuid7()
    assert first_id_of(datetime(2024, 1, 1)) < new_id
    assert new_id.int < first_id_of(datetime(2100, 1, 1)).int


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        (
            by_month("t", [date(2026, 12, 1)]),
            "RANGE COLUMNS(t) (PARTITION p202612 VALUES LESS THAN ('2027-01-01'), "
            "PARTITION p_later VALUES LESS THAN (MAXVALUE))",
        ),
        (
            by_day_of_id("i", [date(2026, 11, 20)]),
            "RANGE COLUMNS(i) (PARTITION p20261120 VALUES LESS THAN ('01a1fb67-1800-0000-0000-000000000000'), "
            "PARTITION p_later VALUES LESS THAN (MAXVALUE))",
        ),
    ],
)
def test_every_clause_ends_in_a_partition_for_later_rows(clause, expected):
    assert clause == expected


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2500, 1, 1)))
def test_the_moment_of_an_id_is_its_creation_time_to_the_millisecond(moment):
    assert moment_of(first_id_of(moment)) == moment.replace(microsecond=moment.microsecond // 1000 * 1000)


DATES = st.dates(min_value=date(1990, 1, 1), max_value=date(2100, 1, 1))


@given(DATES, st.integers(-40, 40), st.integers(0, 60))
def test_coming_cuts_follow_the_last_one_without_overlap_and_reach_to_the_end(first, last_bound, ahead):
    after = datetime(first.year, first.month, first.day) + timedelta(days=last_bound)
    last = first + timedelta(days=ahead)
    for cuts in (day_cuts(after, first=first, last=last), month_cuts(after, first=first, last=last)):
        bounds = [after, *(cut.before for cut in cuts)]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] > datetime(last.year, last.month, last.day) or not cuts
    assert {cut.before - timedelta(days=1) for cut in day_cuts(datetime(1970, 1, 1), first=first, last=last)} == {
        datetime(day.year, day.month, day.day) for day in days(first, ahead + 1)
    }
