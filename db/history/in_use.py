"""Versions in use (they serve, served, or may serve later) and their training runs and snapshots."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, and_, or_, select

from db.history import deployments
from db.tables import deployment, promotion_decision, snapshot, training_run

decision, run = promotion_decision.c, training_run.c


def models(connection: Connection) -> list[str]:
    """Return every model name with a recorded training, replays included."""
    return sorted(connection.scalars(select(run.model).distinct()))


def champions(connection: Connection, model: str) -> set[int]:
    """Return the version that serves and the previous one, for a rollback."""
    row = deployments.desired_row(connection, model)
    return _numbers([row["version"], row["previous_version"]]) if row else set()


def versions_in_use(connection: Connection, model: str, *, since: datetime) -> set[int]:
    """Return versions that serve, that served after `since` or that wait for deployment, and the newest candidate.

    The candidate of a final fit is included too.
    """
    served = select(deployment.c.version, deployment.c.previous_version).where(
        deployment.c.model == model, deployment.c.created_at >= since
    )
    used = champions(connection, model) | _numbers(n for row in connection.execute(served) for n in row)
    waits = and_(
        decision.verdict == "promote",
        decision.promoted_version.is_(None),
        or_(decision.deployment_run_id.is_(None), decision.claimed_at >= since),
    )
    judged = select(decision.candidate_version).where(
        decision.model == model, or_(waits, decision.promoted_version.in_(used))
    )
    newest = select(run.candidate_version).where(run.model == model, run.candidate_version.is_not(None))
    last = connection.scalar(newest.order_by(run.started_at.desc()).limit(1))
    return used | _numbers(connection.scalars(judged)) | _numbers([last])


def runs_behind(connection: Connection, model: str, versions: Iterable[int]) -> dict[int, str]:
    """Return the training run of each of `versions` that has a recorded one."""
    runs: dict[int, str] = {}
    judged = select(decision.candidate_version, decision.promoted_version, decision.run_id)
    for row in connection.execute(judged.where(decision.model == model)):
        runs |= dict.fromkeys(_numbers([row.candidate_version, row.promoted_version]), row.run_id)
    undecided = select(run.candidate_version, run.run_id).where(run.model == model, run.candidate_version.is_not(None))
    runs |= {row.candidate_version: row.run_id for row in connection.execute(undecided)}
    return {version: runs[version] for version in versions if version in runs}


def snapshots_in_use(connection: Connection, *, since: datetime) -> set[str]:
    """Return ids of the snapshots of versions in use and of running trainings, and of all newer than `since`."""
    recent = select(snapshot.c.snapshot_id).where(snapshot.c.created_at >= since)
    running = select(run.snapshot_id).where(or_(run.state == "running", run.started_at >= since))
    used = {str(snapshot_id) for query in (recent, running) for snapshot_id in connection.scalars(query) if snapshot_id}
    for model in models(connection):
        runs = runs_behind(connection, model, versions_in_use(connection, model, since=since))
        ids = select(run.snapshot_id).where(run.run_id.in_(runs.values()))
        used |= {str(snapshot_id) for snapshot_id in connection.scalars(ids) if snapshot_id}
    return used


def rejected(connection: Connection, model: str, *, before: datetime) -> set[int]:
    """Return candidates that were rejected or superseded before `before` and never served."""
    superseded = and_(decision.deployment_run_id.is_not(None), decision.promoted_version.is_(None))
    refused = select(decision.candidate_version).where(
        decision.model == model, decision.decided_at < before, or_(decision.verdict != "promote", superseded)
    )
    served = select(deployment.c.version, deployment.c.previous_version).where(deployment.c.model == model)
    ever_served = _numbers(n for row in connection.execute(served) for n in row)
    return _numbers(connection.scalars(refused)) - ever_served - versions_in_use(connection, model, since=before)


def reading(connection: Connection, model: str) -> list[str]:
    """Return running trainings of `model` without a snapshot. They may still read the store."""
    running = select(run.run_id).where(run.model == model, run.state == "running", run.snapshot_id.is_(None))
    return list(connection.scalars(running))


def _numbers(versions: Iterable[int | None]) -> set[int]:
    return {int(number) for number in versions if number is not None}
