"""Histories for people: which versions served when and why, and the last decisions."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, select, text

from db.tables import (
    deployment,
    drift_result,
    performance_result,
    prediction_log,
    promotion_decision,
    retrain_decision,
    snapshot,
    training_run,
)

# A `deploy` or `rollback` row defines the version to serve until the next such row. `live` or `failed` is the outcome.
# A version belongs to one promotion decision: it is the candidate of the decision, or the candidate's final fit.
SERVED = """
WITH wanted AS (
  SELECT d.*, LEAD(d.id) OVER (ORDER BY d.id) AS next_id, LEAD(d.created_at) OVER (ORDER BY d.id) AS until
  FROM deployment d WHERE d.model = :model AND d.action IN ('deploy', 'rollback')
)
SELECT w.version, w.action, w.created_at AS since, w.until, w.previous_version, w.reason, w.caused_by,
       o.action AS outcome, o.created_at AS outcome_at, o.reason AS outcome_reason,
       p.candidate_version, p.verdict, p.reason AS promoted_because, p.decided_at,
       r.run_id, r.reason AS trained_because, r.window_end
FROM wanted w
LEFT JOIN deployment o ON o.id = (
  SELECT MIN(x.id) FROM deployment x
  WHERE x.model = w.model AND x.version = w.version AND x.action IN ('live', 'failed')
    AND x.id > w.id AND (w.next_id IS NULL OR x.id < w.next_id)
)
LEFT JOIN promotion_decision p
  ON p.model = w.model AND (p.promoted_version = w.version OR p.candidate_version = w.version)
LEFT JOIN training_run r ON r.run_id = p.run_id
ORDER BY w.id DESC
"""

MOMENTS = {  # kind of event to its time column
    "drift": drift_result.c.measured_at,
    "performance": performance_result.c.measured_at,
    "retraining": retrain_decision.c.decided_at,
    "training": training_run.c.started_at,
    "verdict": promotion_decision.c.decided_at,
    "trained": training_run.c.finished_at,
    "deployment": deployment.c.created_at,
}


def served(connection: Connection, model: str) -> list[RowMapping]:
    """Return the versions to serve from `since` to `until` (None: still), with reasons, newest first. Times are UTC."""
    return list(connection.execute(text(SERVED), {"model": model}).mappings())


def last_retraining(connection: Connection, model: str, *, action: str | None = None) -> RowMapping | None:
    """Return the newest decision on retraining, optionally only with `action`, with the state of its run."""
    rows = select(retrain_decision, training_run.c.state.label("run_state")).join_from(
        retrain_decision, training_run, training_run.c.run_id == retrain_decision.c.run_id, isouter=True
    )
    rows = rows.where(retrain_decision.c.action == action) if action else rows
    return _newest(connection, rows, retrain_decision, model)


def last_promotion(connection: Connection, model: str) -> RowMapping | None:
    """Return the newest verdict on a candidate, with its training data and the reason of its training."""
    run, data = training_run.c, snapshot.c
    rows = (
        select(
            promotion_decision,
            run.reason.label("trained_because"),
            run.window_end,
            run.commit_seq,
            run.code_commit,
            data.snapshot_id,
            data.row_count.label("snapshot_rows"),
        )
        .join_from(promotion_decision, training_run, run.run_id == promotion_decision.c.run_id, isouter=True)
        .join(snapshot, data.snapshot_id == run.snapshot_id, isouter=True)
    )
    return _newest(connection, rows, promotion_decision, model)


def events(connection: Connection, model: str, *, since: datetime) -> list[tuple[datetime, str, RowMapping]]:
    """Return the events of `model` from `since` (UTC) on, oldest first: time, key of `MOMENTS`, row."""
    unsorted = [
        (row[moment.name], kind, row)
        for kind, moment in MOMENTS.items()
        for row in connection.execute(
            select(moment.table).where(moment.table.c.model == model, moment >= since)
        ).mappings()
    ]
    return sorted(unsorted, key=lambda event: event[0])


def first_answer(connection: Connection, model: str, *, version: int, since: datetime) -> datetime | None:
    """Return when `version` first answered a request from `since` (UTC) on. Predictions in the shadow do not count."""
    log = prediction_log.c
    answered = (log.model == model) & (log.version == version) & (log.role == "champion")
    earliest = select(func.min(log.created_at)).where(answered, log.created_at >= since)
    moment: datetime | None = connection.scalar(earliest)
    return moment


def _newest(connection: Connection, rows: Any, table: Table, model: str) -> RowMapping | None:
    newest = rows.where(table.c.model == model).order_by(table.c.id.desc()).limit(1)
    row: RowMapping | None = connection.execute(newest).mappings().one_or_none()
    return row
