"""A training run: one row of `training_run` with the inputs of the run and the results of its steps.

The first try fixes the inputs. A step gets only the id of the run. It reads the row and records its result there.
A retry returns the recorded result and changes nothing.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping

from db import history
from db.history import decisions, trainings
from db.session import session
from db.store import loads
from db.store.loads import latest_commit_seq
from db.tables import retrain_decision, training_run
from pipelines.spec import ModelSpec
from utils.clock import as_utc
from utils.errors import DataRefused, NotFound, NothingToDo
from utils.settings import Settings
from utils.version import code_commit


@dataclass(frozen=True, slots=True)
class Run:
    """A row of `training_run`.

    model: the recorded name of the model, which differs from the name in the model file in a replay.
    window_end: UTC. The run reads no later event times.
    commit_seq: the run reads no later commits of the store.
    trials: the number of trials of the search.
    reason: the causes and reasons of the claimed decisions.
    code_commit: the Git commit of the code.
    snapshot_id, mlflow_run_id, best_params, candidate_version: results of the steps. None before the step has run.
    """

    run_id: str
    model: str
    spec: ModelSpec
    window_end: datetime
    commit_seq: int
    trials: int
    reason: str
    code_commit: str
    snapshot_id: str | None
    mlflow_run_id: str | None
    best_params: dict[str, Any] | None
    candidate_version: int | None


def record_decision(
    settings: Settings,
    *,
    model: str,
    cause: str,
    reason: str,
    caused_by: str,
    now: datetime,
    evidence: dict[str, Any] | None = None,
) -> int:
    """Append an open decision to retrain `model`, which a training run can claim. Return the id of the decision.

    There is at most one decision for each `caused_by`, so a retry does not append a second decision.
    """
    row = {"model": model, "action": "retrain", "cause": cause, "reason": reason[:1000], "evidence": evidence or {}}
    with session(settings, "pipeline") as connection:
        return _append_decision(connection, {**row, "caused_by": caused_by, "decided_at": now})


def record_schedule(settings: Settings, spec: ModelSpec, *, caused_by: str, now: datetime) -> int:
    """Append the decision of a scheduled run. Return the id of the decision.

    The decision is to hold if no label was loaded since the last training and the model file has not changed. Then a
    training would only repeat the last training, and could promote a candidate that is better only by chance.
    """
    with session(settings, "pipeline") as connection:
        last_training = next(iter(trainings.trainings(connection, model=spec.name, state="finished")), None)
        new_labels = loads.labels_since(
            connection, model=spec.name, commit_seq=last_training["commit_seq"] if last_training else 0
        )
        if last_training and not new_labels and last_training["spec_hash"] == spec.hash:
            reason = "no label has come since the last training"
            decision = {"action": "hold", "cause": "no_new_labels", "reason": reason}
        else:
            decision = {"action": "retrain", "cause": "schedule", "reason": "its cron"}
        row = {"model": spec.name, **decision, "evidence": {"new_labels": new_labels}}
        return _append_decision(connection, {**row, "caused_by": caused_by, "decided_at": now})


def _append_decision(connection: Connection, row: dict[str, Any]) -> int:
    existing_id = decisions.decision_of(connection, model=row["model"], caused_by=row["caused_by"])
    return existing_id or history.add(connection, retrain_decision, row)


def parse_window_end(value: str) -> datetime:
    """Parse an ISO 8601 time, and return it in UTC without a time zone. A time without an offset is in UTC.

    Raises: DataRefused.
    """
    try:
        return as_utc(datetime.fromisoformat(value))
    except ValueError:
        raise DataRefused(f"window end {value!r} is not a time like 2026-01-31 or 2026-01-31T12:00:00Z") from None


def claim(
    settings: Settings,
    *,
    spec: ModelSpec,
    run_id: str,
    now: datetime,
    window_end: datetime,
    trials: int | None = None,
    model: str | None = None,
) -> Run:
    """Claim all open decisions to retrain the model for the run `run_id`, and fix the inputs of the run.

    A retry returns the inputs of the first try.

    window_end: UTC. The run reads no later event times. A retry ignores it.
    trials: the number of trials of the search. None for the number in the model file. A retry ignores it.
    model: the recorded name of the model. None for the name in the model file. A replay has a name of its own.

    Raises: NothingToDo if no decision is open. No run is recorded then.
    """
    name = model or spec.name
    with session(settings, "pipeline") as connection:
        open_decisions = decisions.claim_retraining(connection, model=name, run_id=run_id, now=now)
        if not open_decisions:
            raise NothingToDo(model=name, reason="no decision to retrain waits for a run")
        row = {
            "run_id": run_id,
            "model": name,
            "window_end": window_end,
            "commit_seq": latest_commit_seq(settings, spec.name),
            "trials": trials or spec.training.search.trials,
            "reason": "; ".join(f"{decision['cause']}: {decision['reason']}" for decision in open_decisions)[:1000],
            "spec": spec.to_json(),
            "spec_hash": spec.hash,
            "code_commit": code_commit(),
            "state": "running",
            "started_at": now,
        }
        history.add_once(connection, training_run, row)
    return load_run(settings, run_id)


def load_run(settings: Settings, run_id: str) -> Run:
    """Load the run from its row.

    Raises: NotFound.
    """
    with session(settings, "pipeline") as connection:
        row = trainings.find_run(connection, run_id)
    if row is None:
        raise NotFound(what=f"training run {run_id!r}")
    return _run_from_row(row)


def record(settings: Settings, run: Run, **columns: Any) -> Run:
    """Record the result of a step in `columns` of the run's row. Return the updated run."""
    with session(settings, "pipeline") as connection:
        trainings.update_run(connection, run.run_id, **columns)
    return load_run(settings, run.run_id)


def read_verdict(settings: Settings, run_id: str) -> str:
    """Read the verdict on the run's candidate: promote, reject or wait.

    Raises: NotFound.
    """
    with session(settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, run_id)
    if row is None:
        raise NotFound(what=f"verdict on training run {run_id!r}")
    return str(row["verdict"])


def finish(settings: Settings, run_id: str, *, now: datetime) -> None:
    """Mark the run as finished. Its decisions are closed with it."""
    with session(settings, "pipeline") as connection:
        trainings.update_run(connection, run_id, state="finished", finished_at=now)


def fail(settings: Settings, run_id: str, *, now: datetime) -> None:
    """Mark the run as failed and reopen its decisions for the next run."""
    with session(settings, "pipeline") as connection:
        trainings.update_run(connection, run_id, state="failed", finished_at=now)
        decisions.release_retraining(connection, run_id=run_id)


def _run_from_row(row: RowMapping) -> Run:
    columns = {name: row[name] for name in Run.__dataclass_fields__ if name != "spec"}
    return Run(spec=ModelSpec.parse(row["spec"], file=f"run {row['run_id']}"), **columns)
