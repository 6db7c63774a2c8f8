"""Rows of decisions on retraining, and of verdicts on candidates."""

from datetime import datetime

from sqlalchemy import Connection, RowMapping, or_, select, update

from db.tables import (
    promotion_decision,
    retrain_decision,
)


def decision_of(connection: Connection, *, model: str, caused_by: str) -> int | None:
    """Return the id of the decision that `caused_by` recorded, or None."""
    same_cause = (retrain_decision.c.model == model) & (retrain_decision.c.caused_by == caused_by)
    return connection.execute(select(retrain_decision.c.id).where(same_cause).limit(1)).scalar_one_or_none()


def claim_retraining(connection: Connection, *, model: str, run_id: str, now: datetime) -> list[RowMapping]:
    """Claim every open decision of `model` for `run_id`, in one statement. A second call returns the same rows."""
    retrain = (retrain_decision.c.model == model) & (retrain_decision.c.action == "retrain")
    claimable = or_(retrain_decision.c.run_id.is_(None), retrain_decision.c.run_id == run_id)
    connection.execute(update(retrain_decision).where(retrain, claimable).values(run_id=run_id, claimed_at=now))
    rows = select(retrain_decision).where(retrain, retrain_decision.c.run_id == run_id).order_by(retrain_decision.c.id)
    return list(connection.execute(rows).mappings())


def release_retraining(connection: Connection, *, run_id: str) -> int:
    """Reopen the decisions of a failed run, for the next run. Return their number."""
    released = update(retrain_decision).where(retrain_decision.c.run_id == run_id)
    return int(connection.execute(released.values(run_id=None, claimed_at=None)).rowcount)


def claim_candidate(connection: Connection, *, model: str, run_id: str, now: datetime) -> RowMapping | None:
    """Claim every waiting candidate of `model` for `run_id`. Return the newest, or None if no candidate waits.

    Older candidates are superseded: they are claimed too, but never deployed.
    """
    promote = (promotion_decision.c.model == model) & (promotion_decision.c.verdict == "promote")
    claimable = or_(promotion_decision.c.deployment_run_id.is_(None), promotion_decision.c.deployment_run_id == run_id)
    connection.execute(
        update(promotion_decision).where(promote, claimable).values(deployment_run_id=run_id, claimed_at=now)
    )
    newest = (
        select(promotion_decision)
        .where(promote, promotion_decision.c.deployment_run_id == run_id)
        .order_by(promotion_decision.c.id.desc())
        .limit(1)
    )
    return connection.execute(newest).mappings().one_or_none()


def set_promoted_version(connection: Connection, *, decision_id: int, version: int) -> None:
    """Record the version that serves because of a decision: the candidate itself, or its final fit."""
    row = promotion_decision.c.id == decision_id
    connection.execute(update(promotion_decision).where(row).values(promoted_version=version))


def find_verdict(connection: Connection, run_id: str) -> RowMapping | None:
    verdict = select(promotion_decision).where(promotion_decision.c.run_id == run_id)
    return connection.execute(verdict).mappings().one_or_none()


def newer_candidate(connection: Connection, *, model: str, than: int) -> int | None:
    """Return the newest candidate that passed its gates after the decision `than`, or None."""
    passed = (promotion_decision.c.model == model) & (promotion_decision.c.verdict == "promote")
    version = select(promotion_decision.c.candidate_version).where(passed, promotion_decision.c.id > than)
    return connection.execute(version.order_by(promotion_decision.c.id.desc()).limit(1)).scalar_one_or_none()


def find_decision(connection: Connection, decision_id: int) -> RowMapping | None:
    decision = select(promotion_decision).where(promotion_decision.c.id == decision_id)
    return connection.execute(decision).mappings().one_or_none()


def open_retraining(connection: Connection, model: str) -> RowMapping | None:
    """Return the oldest decision to retrain that no run has claimed, or None."""
    retrain = (retrain_decision.c.model == model) & (retrain_decision.c.action == "retrain")
    rows = select(retrain_decision).where(retrain, retrain_decision.c.run_id.is_(None)).order_by(retrain_decision.c.id)
    return connection.execute(rows.limit(1)).mappings().one_or_none()


def open_candidate(connection: Connection, model: str) -> int | None:
    """Return the newest candidate that passed its gates and that no deployment has claimed, or None."""
    promote = (promotion_decision.c.model == model) & (promotion_decision.c.verdict == "promote")
    waiting = select(promotion_decision.c.candidate_version).where(
        promote, promotion_decision.c.deployment_run_id.is_(None)
    )
    return connection.scalar(waiting.order_by(promotion_decision.c.id.desc()).limit(1))


def last_decisions(connection: Connection, *, model: str, since: datetime) -> list[RowMapping]:
    """Return the decisions on retraining made after `since`, newest first."""
    rows = select(retrain_decision).where(retrain_decision.c.model == model, retrain_decision.c.decided_at > since)
    return list(connection.execute(rows.order_by(retrain_decision.c.id.desc())).mappings())


def decision_by(connection: Connection, *, model: str, caused_by: str) -> RowMapping | None:
    """Return the decision on retraining by `caused_by`, or None."""
    same_cause = (retrain_decision.c.model == model) & (retrain_decision.c.caused_by == caused_by)
    return connection.execute(select(retrain_decision).where(same_cause).limit(1)).mappings().one_or_none()
