"""Rows of monitoring: profiles of windows and their results."""

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
    """Append the row of a window unless it exists. An existing row stays unchanged."""
    columns = table.c
    same_version = (columns.model == row["model"]) & (columns.version == row["version"])
    query = select(columns.id).where(same_version, columns.window_end == row["window_end"])
    if connection.execute(query).first() is None:
        add(connection, table, row)


def measured_until(connection: Connection, table: Table, *, model: str, version: int | None = None) -> datetime | None:
    """Return the end of the last window in `table` of `model`, or of one version, or None before the first."""
    newest = select(func.max(table.c.window_end)).where(table.c.model == model)
    if version is not None:
        newest = newest.where(table.c.version == version)
    moment: datetime | None = connection.scalar(newest)
    return moment


def windows(
    connection: Connection, table: Table, *, model: str, version: int, after: datetime, until: datetime
) -> list[RowMapping]:
    """Return the rows of a version's windows with after < window_end <= until, oldest first."""
    rows = select(table).where(table.c.model == model, table.c.version == version)
    within = rows.where(table.c.window_end > after, table.c.window_end <= until)
    return list(connection.execute(within.order_by(table.c.window_end)).mappings())


def newest_windows(connection: Connection, table: Table, *, model: str, version: int, most: int) -> list[RowMapping]:
    """Return the last `most` rows of a version's windows, oldest first."""
    rows = select(table).where(table.c.model == model, table.c.version == version)
    return list(connection.execute(rows.order_by(table.c.window_end.desc()).limit(most)).mappings())[::-1]


def versions(connection: Connection, *, model: str, after: datetime) -> list[int]:
    """Return the versions of `model` with a profiled window that ended after `after`."""
    query = select(window_profile.c.version).where(window_profile.c.model == model, window_profile.c.window_end > after)
    return sorted(connection.scalars(query.distinct()))


def rejects(connection: Connection, *, model: str, since: datetime) -> dict[str, dict[str, int]]:
    """Return counts of refused requests by UTC day (ISO) and field, from the day of `since` on."""
    counts = (
        select(request_reject.c.day, request_reject.c.field, func.sum(request_reject.c.requests).label("requests"))
        .where(request_reject.c.model == model, request_reject.c.day >= datetime(since.year, since.month, since.day))
        .group_by(request_reject.c.day, request_reject.c.field)
    )
    by_day: dict[str, dict[str, int]] = {}
    for row in connection.execute(counts):
        by_day.setdefault(f"{row.day:%Y-%m-%d}", {})[row.field] = int(row.requests)
    return by_day


def last_windows(connection: Connection, *, model: str, most: int) -> list[RowMapping]:
    """Return end, rows and quality of the last `most` profiled windows of `model`, of any version, oldest first."""
    columns = (window_profile.c.window_end, window_profile.c.row_count, window_profile.c.quality)
    rows = select(*columns).where(window_profile.c.model == model).order_by(window_profile.c.window_end.desc())
    return list(connection.execute(rows.limit(most)).mappings())[::-1]
