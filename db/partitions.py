"""Names and boundaries of time partitions, for the migration, the store tables and maintenance.

Every table ends with the partition `p_later`. It takes all rows beyond the last boundary, so no row is ever refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

LATER = "p_later"


@dataclass(frozen=True, slots=True)
class Cut:
    """The partition `name`. It holds the rows earlier than `before` (UTC) that are not in an earlier partition."""

    name: str
    before: datetime


def days(first: date, count: int) -> list[date]:
    """Return `count` days in a row, beginning with `first`."""
    return [first + timedelta(days=offset) for offset in range(count)]


def months(around: date, *, back: int, ahead: int) -> list[date]:
    """Return the first days of months, from `back` months before the month of `around` to `ahead` months after it."""
    month_number = around.year * 12 + around.month - 1
    return [date(month // 12, month % 12 + 1, 1) for month in range(month_number - back, month_number + ahead + 1)]


def first_id_of(moment: datetime) -> UUID:
    """Return the least UUIDv7 of `moment` (UTC). Its milliseconds are the first 48 bits, the rest is zero."""
    since_epoch = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return UUID(int=(since_epoch // timedelta(milliseconds=1)) << 80)


def moment_of(prediction_id: UUID) -> datetime:
    """Return the millisecond (UTC) in a UUIDv7."""
    return datetime(1970, 1, 1) + timedelta(milliseconds=prediction_id.int >> 80)


def day_cut(day: date) -> Cut:
    return Cut(f"p{day:%Y%m%d}", _midnight(day + timedelta(days=1)))


def month_cut(day: date) -> Cut:
    return Cut(f"p{day:%Y%m}", _midnight(months(day, back=0, ahead=1)[-1]))


def day_cuts(after: datetime, *, first: date, last: date) -> list[Cut]:
    """Return a cut for each day from `first` to `last` that ends after `after`. The first cut takes older rows too."""
    cuts = [day_cut(day) for day in days(first, (last - first).days + 1)]
    return [cut for cut in cuts if cut.before > after]


def month_cuts(after: datetime, *, first: date, last: date) -> list[Cut]:
    """Return a cut for each month from `first` to `last` that ends after `after`, like `day_cuts`."""
    distance = (last.year - first.year) * 12 + last.month - first.month
    cuts = [month_cut(day) for day in months(first, back=0, ahead=distance)]
    return [cut for cut in cuts if cut.before > after]


def id_bound(before: datetime) -> str:
    return str(first_id_of(before))


def time_bound(before: datetime) -> str:
    return f"{before:%Y-%m-%d}"


def by_day_of_id(column: str, first_days: Iterable[date]) -> str:
    """Return the clause after PARTITION BY, with a partition for each UTC day of the UUIDv7 in `column`."""
    return f"RANGE COLUMNS({column}) ({_parts((cut.name, id_bound(cut.before)) for cut in map(day_cut, first_days))})"


def by_month(column: str, first_days: Iterable[date]) -> str:
    """Return the clause after PARTITION BY, with a partition for each month. The first one takes all older rows too."""
    cuts = map(month_cut, first_days)
    return f"RANGE COLUMNS({column}) ({_parts((cut.name, time_bound(cut.before)) for cut in cuts)})"


def split_later(name: str, bound: str) -> str:
    """Return the clause after ALTER TABLE that splits the partition `name` off `p_later`."""
    return f"REORGANIZE PARTITION {LATER} INTO ({_parts([(name, bound)])})"


def _parts(bounds: Iterable[tuple[str, str]]) -> str:
    parts = [f"PARTITION {name} VALUES LESS THAN ('{bound}')" for name, bound in bounds]
    return ", ".join([*parts, f"PARTITION {LATER} VALUES LESS THAN (MAXVALUE)"])


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)
