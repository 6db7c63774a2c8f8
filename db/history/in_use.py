"""What is still needed: versions that serve, served or may come to serve, and the trainings behind them."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, and_, or_, select

from db.history import deployments
from db.tables import deployment, promotion_decision, snapshot, training_run

decision, run = promotion_decision.c, training_run.c


def models(connection: Connection) -> list[str]:
    """Every name that a training was recorded under, replays included."""
    return sorted(connection.scalars(select(run.model).distinct()))


def champions(connection: Connection, model: str) -> set[int]:
    """The version that serves and the one to roll back to."""
    row = deployments.desired_row(connection, model)
    return _numbers([row["version"], row["previous_version"]]) if row else set()


def versions_in_use(connection: Connection, model: str, *, since: datetime) -> set[int]:
    """Versions that serve, that served at any time after `since`, that wait to be deployed, and the newest candidate.

    With a final fit the version that was judged in its place is among them.
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
    """The training run that made each of `versions`, where one is known."""
    found: dict[int, str] = {}
    made = select(decision.candidate_version, decision.promoted_version, decision.run_id).where(decision.model == model)
    for row in connection.execute(made):
        found |= dict.fromkeys(_numbers([row.candidate_version, row.promoted_version]), row.run_id)
    undecided = select(run.candidate_version, run.run_id).where(run.model == model, run.candidate_version.is_not(None))
    found |= {row.candidate_version: row.run_id for row in connection.execute(undecided)}
    return {version: found[version] for version in versions if version in found}


def snapshots_in_use(connection: Connection, *, since: datetime) -> set[str]:
    """Ids of the snapshots of versions in use, of trainings under way, and of all that were made after `since`."""
    recent = select(snapshot.c.snapshot_id).where(snapshot.c.created_at >= since)
    at_work = select(run.snapshot_id).where(or_(run.state == "running", run.started_at >= since))
    used = {str(found) for query in (recent, at_work) for found in connection.scalars(query) if found}
    for model in models(connection):
        behind = runs_behind(connection, model, versions_in_use(connection, model, since=since))
        ids = select(run.snapshot_id).where(run.run_id.in_(behind.values()))
        used |= {str(found) for found in connection.scalars(ids) if found}
    return used


def rejected(connection: Connection, model: str, *, before: datetime) -> set[int]:
    """Candidates that were refused, or superseded, before `before` and never served."""
    superseded = and_(decision.deployment_run_id.is_not(None), decision.promoted_version.is_(None))
    refused = select(decision.candidate_version).where(
        decision.model == model, decision.decided_at < before, or_(decision.verdict != "promote", superseded)
    )
    served = select(deployment.c.version, deployment.c.previous_version).where(deployment.c.model == model)
    ever = _numbers(n for row in connection.execute(served) for n in row)
    return _numbers(connection.scalars(refused)) - ever - versions_in_use(connection, model, since=before)


def reading(connection: Connection, model: str) -> list[str]:
    """Trainings of `model` that have not written their snapshot yet: they may be reading the store."""
    at_work = select(run.run_id).where(run.model == model, run.state == "running", run.snapshot_id.is_(None))
    return list(connection.scalars(at_work))


def _numbers(found: Iterable[int | None]) -> set[int]:
    return {int(number) for number in found if number is not None}
