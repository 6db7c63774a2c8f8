"""The clock. All times in Evergreen are naive UTC with microseconds, like MariaDB's DATETIME(6)."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time in UTC without a time zone. Only entry points call it and pass the time on."""
    return datetime.now(UTC).replace(tzinfo=None)


def as_utc(moment: datetime) -> datetime:
    """Return `moment` in UTC without a time zone. A time without a zone is taken as UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
