"""Rows of monitoring: profiles of windows, what they showed, and what was decided on it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, select, update

from db.history import add
from db.tables import (
    dead_letter,
    deployment,
    load_batch,
    promotion_decision,
    request_reject,
    retrain_decision,
    training_run,
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


def first_deployment(connection: Connection, model: str) -> datetime | None:
    earliest = select(func.min(deployment.c.created_at)).where(deployment.c.model == model)
    found: datetime | None = connection.scalar(earliest)
    return found


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


def open_retraining(connection: Connection, model: str) -> RowMapping | None:
    """The oldest decision to retrain that no run has claimed, or None."""
    mine = (retrain_decision.c.model == model) & (retrain_decision.c.action == "retrain")
    waiting = select(retrain_decision).where(mine, retrain_decision.c.run_id.is_(None)).order_by(retrain_decision.c.id)
    return connection.execute(waiting.limit(1)).mappings().one_or_none()


def open_candidate(connection: Connection, model: str) -> int | None:
    """The newest candidate that passed its gates, where no deployment has claimed it; else None."""
    mine = (promotion_decision.c.model == model) & (promotion_decision.c.verdict == "promote")
    waiting = select(promotion_decision.c.candidate_version).where(
        mine, promotion_decision.c.deployment_run_id.is_(None)
    )
    return connection.scalar(waiting.order_by(promotion_decision.c.id.desc()).limit(1))


def last_decisions(connection: Connection, *, model: str, since: datetime) -> list[RowMapping]:
    """Decisions on retraining made after `since`, newest first."""
    rows = select(retrain_decision).where(retrain_decision.c.model == model, retrain_decision.c.decided_at > since)
    return list(connection.execute(rows.order_by(retrain_decision.c.id.desc())).mappings())


def decision_by(connection: Connection, *, model: str, caused_by: str) -> RowMapping | None:
    """What `caused_by` decided on retraining, or None."""
    mine = (retrain_decision.c.model == model) & (retrain_decision.c.caused_by == caused_by)
    return connection.execute(select(retrain_decision).where(mine).limit(1)).mappings().one_or_none()


def unsent_alerts(connection: Connection, model: str) -> list[RowMapping]:
    waiting = retrain_decision.c.alert.is_not(None) & retrain_decision.c.alerted_at.is_(None)
    rows = select(retrain_decision).where(retrain_decision.c.model == model, waiting)
    return list(connection.execute(rows.order_by(retrain_decision.c.id)).mappings())


def mark_alerted(connection: Connection, decision_id: int, *, now: datetime) -> None:
    row = retrain_decision.c.id == decision_id
    connection.execute(update(retrain_decision).where(row).values(alerted_at=now))


def unheard_dead_letters(connection: Connection, model: str) -> list[RowMapping]:
    """`id` and `error` of the log's refused rows that nobody was told of yet."""
    mine = (dead_letter.c.model == model) & dead_letter.c.alerted_at.is_(None)
    return list(connection.execute(select(dead_letter.c.id, dead_letter.c.error).where(mine)).mappings())


def mark_dead_letters(connection: Connection, ids: Sequence[int], *, now: datetime) -> None:
    connection.execute(update(dead_letter).where(dead_letter.c.id.in_(ids)).values(alerted_at=now))


def trainings(connection: Connection, *, model: str, state: str | None = None) -> list[RowMapping]:
    """The trainings of `model`, newest first; only those in `state` where it is given. Without their specs."""
    columns = [column for column in training_run.c if column.name not in {"spec", "best_params"}]
    rows = select(*columns).where(training_run.c.model == model).order_by(training_run.c.started_at.desc())
    return list(connection.execute(rows.where(training_run.c.state == state) if state else rows.limit(1)).mappings())


def labels_since(connection: Connection, *, model: str, commit_seq: int) -> int:
    """Rows of labels that loads after `commit_seq` brought."""
    loaded = (
        (load_batch.c.model == model) & (load_batch.c.state == "committed") & (load_batch.c.commit_seq > commit_seq)
    )
    return int(connection.scalar(select(func.coalesce(func.sum(load_batch.c.label_rows), 0)).where(loaded)) or 0)
