"""Alerts that have not been sent yet."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, select, update

from db.tables import (
    dead_letter,
    retrain_decision,
)


def unsent_alerts(connection: Connection, model: str) -> list[RowMapping]:
    unsent = retrain_decision.c.alert.is_not(None) & retrain_decision.c.alerted_at.is_(None)
    rows = select(retrain_decision).where(retrain_decision.c.model == model, unsent)
    return list(connection.execute(rows.order_by(retrain_decision.c.id)).mappings())


def mark_alerted(connection: Connection, decision_id: int, *, now: datetime) -> None:
    row = retrain_decision.c.id == decision_id
    connection.execute(update(retrain_decision).where(row).values(alerted_at=now))


def unheard_dead_letters(connection: Connection, model: str) -> list[RowMapping]:
    """Return `id` and `error` of the dead letters that have not been alerted yet."""
    unsent = (dead_letter.c.model == model) & dead_letter.c.alerted_at.is_(None)
    return list(connection.execute(select(dead_letter.c.id, dead_letter.c.error).where(unsent)).mappings())


def mark_dead_letters(connection: Connection, ids: Sequence[int], *, now: datetime) -> None:
    connection.execute(update(dead_letter).where(dead_letter.c.id.in_(ids)).values(alerted_at=now))
