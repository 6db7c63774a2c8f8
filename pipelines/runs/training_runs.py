"""A training run: what its first try fixed and what its steps made, one row of `training_run`.

Steps hand each other the run's id and nothing else; each reads the row, does its part, and writes what it made. A step
that finds its part done returns it, so a retry changes nothing.
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
    """`window_end`: UTC; bounds the data by business time. `commit_seq`: bounds it by what the store had committed."""

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
    """Append an open decision to retrain `model`, which a training run will claim; returns its id.

    `caused_by` has one at most, so that a retry adds none.
    """
    row = {"model": model, "action": "retrain", "cause": cause, "reason": reason[:1000], "evidence": evidence or {}}
    with session(settings, "pipeline") as connection:
        return _decision(connection, {**row, "caused_by": caused_by, "decided_at": now})


def record_schedule(settings: Settings, spec: ModelSpec, *, caused_by: str, now: datetime) -> int:
    """Append what a run by cron decides; returns its id.

    Where no label has come since the last training and the model file is the same, it would only repeat that one: a
    candidate as good as the champion would be promoted by luck.
    """
    with session(settings, "pipeline") as connection:
        last = next(iter(trainings.trainings(connection, model=spec.name, state="finished")), None)
        fresh = loads.labels_since(connection, model=spec.name, commit_seq=last["commit_seq"] if last else 0)
        repeats = last is not None and not fresh and last["spec_hash"] == spec.hash
        decided = {"action": "hold", "cause": "no_new_labels", "reason": "no label has come since the last training"}
        if not repeats:
            decided = {"action": "retrain", "cause": "schedule", "reason": "its cron"}
        row = {"model": spec.name, **decided, "evidence": {"new_labels": fresh}}
        return _decision(connection, {**row, "caused_by": caused_by, "decided_at": now})


def _decision(connection: Connection, row: dict[str, Any]) -> int:
    known = decisions.decision_of(connection, model=row["model"], caused_by=row["caused_by"])
    return known or history.add(connection, retrain_decision, row)


def parse_window_end(given: str) -> datetime:
    """An ISO 8601 instant as naive UTC; one without an offset is UTC already.

    Raises: DataRefused.
    """
    try:
        return as_utc(datetime.fromisoformat(given))
    except ValueError:
        raise DataRefused(f"window end {given!r} is not a time like 2026-01-31 or 2026-01-31T12:00:00Z") from None


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
    """Claim every open decision of the model for `run_id` and fix what this run works on.

    The second try of a run gets what the first one fixed, whatever `window_end` and `trials` say. `model` is what the
    run is recorded under where that is not the model file's name, as in a replay.

    Raises: NothingToDo where no decision is open; the run then has no row.
    """
    name = model or spec.name
    with session(settings, "pipeline") as connection:
        claimed = decisions.claim_retraining(connection, model=name, run_id=run_id, now=now)
        if not claimed:
            raise NothingToDo(model=name, reason="no decision to retrain waits for a run")
        row = {
            "run_id": run_id,
            "model": name,
            "window_end": window_end,
            "commit_seq": latest_commit_seq(settings, spec.name),
            "trials": trials or spec.training.search.trials,
            "reason": "; ".join(f"{decision['cause']}: {decision['reason']}" for decision in claimed)[:1000],
            "spec": spec.to_json(),
            "spec_hash": spec.hash,
            "code_commit": code_commit(),
            "state": "running",
            "started_at": now,
        }
        history.add_once(connection, training_run, row)
    return load_run(settings, run_id)


def load_run(settings: Settings, run_id: str) -> Run:
    """The run as it stands.

    Raises: NotFound.
    """
    with session(settings, "pipeline") as connection:
        row = trainings.find_run(connection, run_id)
    if row is None:
        raise NotFound(what=f"training run {run_id!r}")
    return _run(row)


def record(settings: Settings, run: Run, **made: Any) -> Run:
    """Write what a step made (columns of `training_run`) and return the run with it."""
    with session(settings, "pipeline") as connection:
        trainings.update_run(connection, run.run_id, **made)
    return load_run(settings, run.run_id)


def verdict(settings: Settings, run_id: str) -> str:
    """What was decided on the run's candidate: promote, reject or wait.

    Raises: NotFound.
    """
    with session(settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, run_id)
    if row is None:
        raise NotFound(what=f"verdict on training run {run_id!r}")
    return str(row["verdict"])


def finish(settings: Settings, run_id: str, *, now: datetime) -> None:
    """Mark the run finished; its decisions are answered."""
    with session(settings, "pipeline") as connection:
        trainings.update_run(connection, run_id, state="finished", finished_at=now)


def fail(settings: Settings, run_id: str, *, now: datetime) -> None:
    """Mark the run failed and open its decisions again, so that the next run picks them up."""
    with session(settings, "pipeline") as connection:
        trainings.update_run(connection, run_id, state="failed", finished_at=now)
        decisions.release_retraining(connection, run_id=run_id)


def _run(row: RowMapping) -> Run:
    given = {name: row[name] for name in Run.__dataclass_fields__ if name != "spec"}
    return Run(spec=ModelSpec.parse(row["spec"], file=f"run {row['run_id']}"), **given)
