"""Rows of decisions: whether to train a model again, and the verdict on each candidate."""

from datetime import datetime

from sqlalchemy import Connection, RowMapping, or_, select, update

from db.tables import (
    promotion_decision,
    retrain_decision,
)


def decision_of(connection: Connection, *, model: str, caused_by: str) -> int | None:
    """The id of the decision to retrain that `caused_by` recorded, or None."""
    mine = (retrain_decision.c.model == model) & (retrain_decision.c.caused_by == caused_by)
    return connection.execute(select(retrain_decision.c.id).where(mine).limit(1)).scalar_one_or_none()


def claim_retraining(connection: Connection, *, model: str, run_id: str, now: datetime) -> list[RowMapping]:
    """Give every open decision of `model` to `run_id`, in one statement; a second call gives the same rows again."""
    mine = (retrain_decision.c.model == model) & (retrain_decision.c.action == "retrain")
    open_or_mine = or_(retrain_decision.c.run_id.is_(None), retrain_decision.c.run_id == run_id)
    connection.execute(update(retrain_decision).where(mine, open_or_mine).values(run_id=run_id, claimed_at=now))
    claimed = select(retrain_decision).where(mine, retrain_decision.c.run_id == run_id).order_by(retrain_decision.c.id)
    return list(connection.execute(claimed).mappings())


def release_retraining(connection: Connection, *, run_id: str) -> int:
    """Open the decisions of a run that died again, for the next run; returns how many."""
    released = update(retrain_decision).where(retrain_decision.c.run_id == run_id)
    return int(connection.execute(released.values(run_id=None, claimed_at=None)).rowcount)


def claim_candidate(connection: Connection, *, model: str, run_id: str, now: datetime) -> RowMapping | None:
    """Give `run_id` every candidate of `model` that waits for deployment and return the newest; None where none waits.

    The older ones are superseded: they are claimed too, and nobody deploys them.
    """
    mine = (promotion_decision.c.model == model) & (promotion_decision.c.verdict == "promote")
    open_or_mine = or_(
        promotion_decision.c.deployment_run_id.is_(None), promotion_decision.c.deployment_run_id == run_id
    )
    connection.execute(
        update(promotion_decision).where(mine, open_or_mine).values(deployment_run_id=run_id, claimed_at=now)
    )
    newest = (
        select(promotion_decision)
        .where(mine, promotion_decision.c.deployment_run_id == run_id)
        .order_by(promotion_decision.c.id.desc())
        .limit(1)
    )
    return connection.execute(newest).mappings().one_or_none()


def set_promoted_version(connection: Connection, *, decision_id: int, version: int) -> None:
    """Record which version serves for a decision: the candidate itself, or its final fit."""
    row = promotion_decision.c.id == decision_id
    connection.execute(update(promotion_decision).where(row).values(promoted_version=version))


def find_verdict(connection: Connection, run_id: str) -> RowMapping | None:
    verdict = select(promotion_decision).where(promotion_decision.c.run_id == run_id)
    return connection.execute(verdict).mappings().one_or_none()


def newer_candidate(connection: Connection, *, model: str, than: int) -> int | None:
    """The version of the newest candidate that passed its gates after decision `than`, or None."""
    passed = (promotion_decision.c.model == model) & (promotion_decision.c.verdict == "promote")
    version = select(promotion_decision.c.candidate_version).where(passed, promotion_decision.c.id > than)
    return connection.execute(version.order_by(promotion_decision.c.id.desc()).limit(1)).scalar_one_or_none()


def find_decision(connection: Connection, decision_id: int) -> RowMapping | None:
    decision = select(promotion_decision).where(promotion_decision.c.id == decision_id)
    return connection.execute(decision).mappings().one_or_none()


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
