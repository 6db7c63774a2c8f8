"""Time partitions: names and boundaries computed from dates, for the migration, the store tables and maintenance alike.

Every table ends in the partition `p_later`, which takes what lies beyond the last boundary, so no row is ever refused.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

LATER = "p_later"


def days(first: date, count: int) -> list[date]:
    """`count` days in a row, `first` included."""
    return [first + timedelta(days=offset) for offset in range(count)]


def months(around: date, *, back: int, ahead: int) -> list[date]:
    """First days of the months from `back` months before that of `around` to `ahead` months after it."""
    of_year_zero = around.year * 12 + around.month - 1
    return [date(month // 12, month % 12 + 1, 1) for month in range(of_year_zero - back, of_year_zero + ahead + 1)]


def first_id_of(moment: datetime) -> UUID:
    """The least UUIDv7 that can be made at `moment` (UTC): its milliseconds are the first 48 bits, the rest is zero."""
    since_epoch = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return UUID(int=(since_epoch // timedelta(milliseconds=1)) << 80)


def by_day_of_id(column: str, first_days: Iterable[date]) -> str:
    """What follows PARTITION BY, with one partition for each UTC day, told from the time in the UUIDv7 of `column`."""
    bounds = [(f"p{day:%Y%m%d}", str(first_id_of(_midnight(day + timedelta(days=1))))) for day in first_days]
    return _range_columns(column, bounds)


def by_month(column: str, first_days: Iterable[date]) -> str:
    """What follows PARTITION BY, with one partition for each month; the first one takes what is older too."""
    bounds = [(f"p{day:%Y%m}", f"{_next_month(day):%Y-%m-%d}") for day in first_days]
    return _range_columns(column, bounds)


def _range_columns(column: str, bounds: Iterable[tuple[str, str]]) -> str:
    parts = [f"PARTITION {name} VALUES LESS THAN ('{bound}')" for name, bound in bounds]
    parts.append(f"PARTITION {LATER} VALUES LESS THAN (MAXVALUE)")
    return f"RANGE COLUMNS({column}) ({', '.join(parts)})"


def _next_month(day: date) -> date:
    return months(day, back=0, ahead=1)[-1]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)
