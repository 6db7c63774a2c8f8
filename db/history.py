"""Rows of the platform's histories: decisions, runs, snapshots, deployments, and which services are alive."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, insert, or_, select, text, update

from db.tables import (
    deployment,
    instance,
    promotion_decision,
    retention,
    retrain_decision,
    shadow,
    snapshot,
    training_run,
)

DESIRING = ("deploy", "rollback")
ALIVE = timedelta(seconds=15)  # a worker's heartbeat comes every second or two


def add(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Append `row` and return its id (0 for a table without one)."""
    key = connection.execute(insert(table).values(**row)).inserted_primary_key
    return int(key[0]) if key and isinstance(key[0], int) else 0


def add_once(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Append `row` unless its key is there already; what is there stays as it is."""
    key = next(iter(table.primary_key.columns))
    if connection.execute(select(key).where(key == row[key.name])).first() is None:
        add(connection, table, row)


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


def find_run(connection: Connection, run_id: str) -> RowMapping | None:
    return connection.execute(select(training_run).where(training_run.c.run_id == run_id)).mappings().one_or_none()


def update_run(connection: Connection, run_id: str, **values: Any) -> None:
    connection.execute(update(training_run).where(training_run.c.run_id == run_id).values(**values))


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


def find_snapshot(connection: Connection, snapshot_id: str) -> RowMapping | None:
    return connection.execute(select(snapshot).where(snapshot.c.snapshot_id == snapshot_id)).mappings().one_or_none()


def snapshots(connection: Connection, model: str, *, limit: int) -> list[RowMapping]:
    """The newest snapshots of a model, the last first."""
    rows = select(snapshot).where(snapshot.c.model == model).order_by(snapshot.c.created_at.desc()).limit(limit)
    return list(connection.execute(rows).mappings())


def run_of_snapshot(connection: Connection, snapshot_id: str) -> str | None:
    """A run that was trained on the snapshot; all of them read the same rows."""
    runs = select(training_run.c.run_id).where(training_run.c.snapshot_id == snapshot_id)
    return connection.scalar(runs.order_by(training_run.c.started_at).limit(1))


def dropped_before(connection: Connection, table_name: str) -> datetime | None:
    """Up to when retention has dropped rows of a table, by event time; None where it dropped none."""
    newest = select(func.max(retention.c.dropped_before)).where(retention.c.table_name == table_name)
    found: datetime | None = connection.scalar(newest)
    return found


def desired(connection: Connection, model: str) -> RowMapping | None:
    """The newest deployment row that says what should serve, or None before the first."""
    rows = select(deployment).where(deployment.c.model == model, deployment.c.action.in_(DESIRING))
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def champion(connection: Connection, model: str) -> RowMapping | None:
    """The desired version's row, unless that version failed to come up; None where nothing has been deployed well.

    A version that is being rolled out counts: a candidate that beats the one before it is not yet shown to beat it.
    """
    row = desired(connection, model)
    if row is None:
        return None
    failed = select(deployment.c.id).where(
        deployment.c.model == model,
        deployment.c.action == "failed",
        deployment.c.version == row["version"],
        deployment.c.id > row["id"],
    )
    return None if connection.execute(failed.limit(1)).first() else row


def refusal(connection: Connection, wanted: RowMapping) -> RowMapping | None:
    """The newest row that says why services did not take the version of `wanted`, a deployment row; or None."""
    rows = select(deployment).where(
        deployment.c.model == wanted["model"],
        deployment.c.action == "refused",
        deployment.c.version == wanted["version"],
        deployment.c.id > wanted["id"],
    )
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def shadowing(connection: Connection, model: str) -> RowMapping | None:
    """The newest shadow row of a model, or None; its version is None where the shadow was ended."""
    rows = select(shadow).where(shadow.c.model == model).order_by(shadow.c.id.desc()).limit(1)
    return connection.execute(rows).mappings().one_or_none()


def last_shadow(connection: Connection, model: str, *, version: int | None) -> RowMapping | None:
    """The row that last put `version`, or any one, into the shadow; None where none did."""
    rows = select(shadow).where(shadow.c.model == model, shadow.c.version.is_not(None))
    rows = rows if version is None else rows.where(shadow.c.version == version)
    return connection.execute(rows.order_by(shadow.c.id.desc()).limit(1)).mappings().one_or_none()


def run_of_version(connection: Connection, model: str, version: int) -> str | None:
    """The training run that made a version: a candidate, or its final fit; None where none is recorded."""
    decision = promotion_decision.c
    mine = (decision.candidate_version == version) | (decision.promoted_version == version)
    return connection.scalar(select(decision.run_id).where(decision.model == model, mine).limit(1))


def live(connection: Connection, model: str) -> RowMapping | None:
    """The newest deployment row whose version came up everywhere, or None."""
    rows = select(deployment).where(deployment.c.model == model, deployment.c.action == "live")
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def instances(connection: Connection, model: str) -> list[RowMapping]:
    """Workers of `model` whose heartbeat is fresh by the database's own clock, the oldest first."""
    fresh = instance.c.heartbeat_at > func.utc_timestamp(6) - text(f"INTERVAL {int(ALIVE.total_seconds())} SECOND")
    rows = select(instance).where(instance.c.model == model, fresh).order_by(instance.c.started_at)
    return list(connection.execute(rows).mappings())


LINEAGE = """
SELECT p.prediction_id, p.model, p.version, p.role, p.entity_id, p.prediction, p.created_at,
       d.candidate_version, d.verdict, d.reason AS promoted_because, d.decided_at,
       r.run_id, r.mlflow_run_id, r.reason AS trained_because, r.window_end, r.commit_seq, r.spec_hash, r.code_commit,
       s.snapshot_id, s.content_sha256 AS snapshot_sha256, s.row_count AS snapshot_rows, s.path AS snapshot_path
FROM prediction_log p
LEFT JOIN promotion_decision d
  ON d.model = p.model AND (d.promoted_version = p.version OR d.candidate_version = p.version)
LEFT JOIN training_run r ON r.run_id = d.run_id
LEFT JOIN snapshot s ON s.snapshot_id = r.snapshot_id
WHERE p.prediction_id = :prediction_id
"""


def lineage(connection: Connection, prediction_id: str) -> RowMapping | None:
    """From a prediction to its version, run, snapshot and commit in one query; None where none is logged by that id."""
    return connection.execute(text(LINEAGE), {"prediction_id": prediction_id}).mappings().one_or_none()
