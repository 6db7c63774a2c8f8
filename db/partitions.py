"""Time partitions: names and boundaries computed from dates, for the migration, the store tables and maintenance alike.

Every table ends in the partition `p_later`, which takes what lies beyond the last boundary, so no row is ever refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

LATER = "p_later"


@dataclass(frozen=True, slots=True)
class Cut:
    """The partition `name` holds what is earlier than `before` (UTC) and not in a partition before it."""

    name: str
    before: datetime


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


def moment_of(prediction_id: UUID) -> datetime:
    """The millisecond (UTC) at which a UUIDv7 was made."""
    return datetime(1970, 1, 1) + timedelta(milliseconds=prediction_id.int >> 80)


def day_cut(day: date) -> Cut:
    return Cut(f"p{day:%Y%m%d}", _midnight(day + timedelta(days=1)))


def month_cut(day: date) -> Cut:
    return Cut(f"p{day:%Y%m}", _midnight(months(day, back=0, ahead=1)[-1]))


def day_cuts(after: datetime, *, first: date, last: date) -> list[Cut]:
    """A cut a day that ends after `after`, from `first` to `last`; the first of them takes all that is older too."""
    cuts = [day_cut(day) for day in days(first, (last - first).days + 1)]
    return [cut for cut in cuts if cut.before > after]


def month_cuts(after: datetime, *, first: date, last: date) -> list[Cut]:
    """The same with a cut a month."""
    apart = (last.year - first.year) * 12 + last.month - first.month
    cuts = [month_cut(day) for day in months(first, back=0, ahead=apart)]
    return [cut for cut in cuts if cut.before > after]


def id_bound(before: datetime) -> str:
    return str(first_id_of(before))


def time_bound(before: datetime) -> str:
    return f"{before:%Y-%m-%d}"


def by_day_of_id(column: str, first_days: Iterable[date]) -> str:
    """What follows PARTITION BY, with one partition for each UTC day, told from the time in the UUIDv7 of `column`."""
    return f"RANGE COLUMNS({column}) ({_parts((cut.name, id_bound(cut.before)) for cut in map(day_cut, first_days))})"


def by_month(column: str, first_days: Iterable[date]) -> str:
    """What follows PARTITION BY, with one partition for each month; the first one takes what is older too."""
    cuts = map(month_cut, first_days)
    return f"RANGE COLUMNS({column}) ({_parts((cut.name, time_bound(cut.before)) for cut in cuts)})"


def split_later(name: str, bound: str) -> str:
    """What follows ALTER TABLE, to cut the partition `name` off `p_later`."""
    return f"REORGANIZE PARTITION {LATER} INTO ({_parts([(name, bound)])})"


def _parts(bounds: Iterable[tuple[str, str]]) -> str:
    parts = [f"PARTITION {name} VALUES LESS THAN ('{bound}')" for name, bound in bounds]
    return ", ".join([*parts, f"PARTITION {LATER} VALUES LESS THAN (MAXVALUE)"])


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)
