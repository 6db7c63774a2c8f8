"""Rows of monitoring: profiles of windows, what they showed, and what was decided on it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, select

from db.history import add
from db.tables import (
    request_reject,
    window_profile,
)


def add_window(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Append what a window showed, unless that is there already; what is there stays as it is."""
    columns = table.c
    same = (columns.model == row["model"]) & (columns.version == row["version"])
    if connection.execute(select(columns.id).where(same, columns.window_end == row["window_end"])).first() is None:
        add(connection, table, row)


def measured_until(connection: Connection, table: Table, *, model: str, version: int | None = None) -> datetime | None:
    """The end of the last window of `model`, or of one of its versions, that `table` has; None before the first."""
    newest = select(func.max(table.c.window_end)).where(table.c.model == model)
    if version is not None:
        newest = newest.where(table.c.version == version)
    found: datetime | None = connection.scalar(newest)
    return found


def windows(
    connection: Connection, table: Table, *, model: str, version: int, after: datetime, until: datetime
) -> list[RowMapping]:
    """Rows of a version's windows with after < window_end <= until, oldest first."""
    rows = select(table).where(table.c.model == model, table.c.version == version)
    within = rows.where(table.c.window_end > after, table.c.window_end <= until)
    return list(connection.execute(within.order_by(table.c.window_end)).mappings())


def newest_windows(connection: Connection, table: Table, *, model: str, version: int, most: int) -> list[RowMapping]:
    """The last `most` rows of a version's windows, oldest first."""
    rows = select(table).where(table.c.model == model, table.c.version == version)
    return list(connection.execute(rows.order_by(table.c.window_end.desc()).limit(most)).mappings())[::-1]


def versions(connection: Connection, *, model: str, after: datetime) -> list[int]:
    """Versions of `model` with a profiled window that ended after `after`."""
    seen = select(window_profile.c.version).where(window_profile.c.model == model, window_profile.c.window_end > after)
    return sorted(connection.scalars(seen.distinct()))


def rejects(connection: Connection, *, model: str, since: datetime) -> dict[str, dict[str, int]]:
    """Refused requests by UTC day (ISO) and field, from the day of `since` on."""
    counted = (
        select(request_reject.c.day, request_reject.c.field, func.sum(request_reject.c.requests).label("requests"))
        .where(request_reject.c.model == model, request_reject.c.day >= datetime(since.year, since.month, since.day))
        .group_by(request_reject.c.day, request_reject.c.field)
    )
    found: dict[str, dict[str, int]] = {}
    for row in connection.execute(counted):
        found.setdefault(f"{row.day:%Y-%m-%d}", {})[row.field] = int(row.requests)
    return found


def last_windows(connection: Connection, *, model: str, most: int) -> list[RowMapping]:
    """End, rows and quality of the last `most` profiled windows of `model`, any version, oldest first."""
    columns = (window_profile.c.window_end, window_profile.c.row_count, window_profile.c.quality)
    rows = select(*columns).where(window_profile.c.model == model).order_by(window_profile.c.window_end.desc())
    return list(connection.execute(rows.limit(most)).mappings())[::-1]
