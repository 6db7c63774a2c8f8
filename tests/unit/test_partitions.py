from datetime import date, datetime

import pytest
from uuid6 import uuid7

from db.partitions import by_day_of_id, by_month, days, first_id_of, months


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
    made = uuid7()
    assert first_id_of(datetime(2024, 1, 1)) < made
    assert made.int < first_id_of(datetime(2100, 1, 1)).int


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
def test_every_clause_ends_in_a_partition_for_what_comes_later(clause, expected):
    assert clause == expected
