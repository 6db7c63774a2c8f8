"""The time, as everything here keeps it: UTC, naive, microseconds, as MariaDB's DATETIME(6) holds it."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time in UTC without a time zone. Entry points call it; below them time is an argument."""
    return datetime.now(UTC).replace(tzinfo=None)


def as_utc(moment: datetime) -> datetime:
    """`moment` in UTC without a time zone; one without a zone is taken to be UTC already."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
