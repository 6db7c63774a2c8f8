"""Rows of trainings and snapshots, and the lineage of a prediction."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select, text, update

from db.tables import (
    promotion_decision,
    retention,
    snapshot,
    training_run,
)

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


def find_run(connection: Connection, run_id: str) -> RowMapping | None:
    return connection.execute(select(training_run).where(training_run.c.run_id == run_id)).mappings().one_or_none()


def update_run(connection: Connection, run_id: str, **values: Any) -> None:
    connection.execute(update(training_run).where(training_run.c.run_id == run_id).values(**values))


def find_snapshot(connection: Connection, snapshot_id: str) -> RowMapping | None:
    return connection.execute(select(snapshot).where(snapshot.c.snapshot_id == snapshot_id)).mappings().one_or_none()


def snapshots(connection: Connection, model: str, *, limit: int) -> list[RowMapping]:
    """Return the newest snapshots of a model, newest first."""
    rows = select(snapshot).where(snapshot.c.model == model).order_by(snapshot.c.created_at.desc()).limit(limit)
    return list(connection.execute(rows).mappings())


def run_of_snapshot(connection: Connection, snapshot_id: str) -> str | None:
    """Return the first run that was trained on the snapshot, or None. All of its runs read the same rows."""
    runs = select(training_run.c.run_id).where(training_run.c.snapshot_id == snapshot_id)
    return connection.scalar(runs.order_by(training_run.c.started_at).limit(1))


def run_of_version(connection: Connection, model: str, version: int) -> str | None:
    """Return the training run of a version, a candidate or its final fit, or None."""
    decision = promotion_decision.c
    same_version = (decision.candidate_version == version) | (decision.promoted_version == version)
    return connection.scalar(select(decision.run_id).where(decision.model == model, same_version).limit(1))


def dropped_before(connection: Connection, table_name: str) -> datetime | None:
    """Return the event time before which retention has dropped rows of a table, or None."""
    newest = select(func.max(retention.c.dropped_before)).where(retention.c.table_name == table_name)
    moment: datetime | None = connection.scalar(newest)
    return moment


def lineage(connection: Connection, prediction_id: str) -> RowMapping | None:
    """Return version, run, snapshot and commit of a prediction, or None if the id is not logged."""
    return connection.execute(text(LINEAGE), {"prediction_id": prediction_id}).mappings().one_or_none()


def trainings(connection: Connection, *, model: str, state: str | None = None) -> list[RowMapping]:
    """Return the trainings of `model` in `state`, newest first, or only the newest in any state. Without specs."""
    columns = [column for column in training_run.c if column.name not in {"spec", "best_params"}]
    rows = select(*columns).where(training_run.c.model == model).order_by(training_run.c.started_at.desc())
    return list(connection.execute(rows.where(training_run.c.state == state) if state else rows.limit(1)).mappings())
