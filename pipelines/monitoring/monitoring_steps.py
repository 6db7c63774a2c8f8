"""The steps of a monitoring run in order: release, profile, drift, performance, decide.

Each step reads and writes rows, and repeating a step changes nothing. The next run completes the work of a crashed run:
it counts windows from the last counted one, and a decision that no training has claimed starts a training again. A step
imports slow modules itself, because the DAG file reads the names of the steps at every parse.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta

from sqlalchemy import RowMapping

from db import history
from db.history import alerts, decisions, trainings
from db.session import session
from db.tables import retrain_decision
from pipelines.monitoring import alert, trigger
from pipelines.monitoring.trigger import MonitoringState, Policy
from pipelines.spec import ModelSpec
from pipelines.training import training_steps
from utils.errors import NothingToDo
from utils.settings import Settings

ABANDONED = timedelta(days=1)  # a training outside Airflow that runs longer than this counts as crashed
ENDED = {"success", "failed"}


def release(settings: Settings, *, model: str, state_of: Callable[[str], str | None], now: datetime) -> list[str]:
    """Reopen the decisions of crashed trainings for the next training. Return the ids of the crashed trainings.

    state_of: returns Airflow's state of a run of the training DAG, or None if Airflow has no run with that id. A
        training from the command line has no state, so its age decides.
    """
    with session(settings, "pipeline") as connection:
        running = trainings.trainings(connection, model=model, state="running")
    released = []
    for run in running:
        run_id = str(run["run_id"])
        if run_id.startswith(f"{model}_training/"):
            state = state_of(run_id)
            ended = state is None or state in ENDED
        else:
            ended = now - run["started_at"] > ABANDONED
        if ended:
            training_steps.give_up(run_id, settings=settings, now=now)
            released.append(run_id)
    return released


def profile_windows(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> str:
    from pipelines.monitoring import windows

    count = windows.count_windows(settings, spec, until=until, now=now)
    return f"{count} new windows"


def drift(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> str:
    from pipelines.monitoring import windows

    return "; ".join(windows.drift(settings, spec, until=until, now=now)) or "no new window with enough rows"


def performance(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> str:
    from pipelines.monitoring.performance import performance

    return "; ".join(performance(settings, spec, until=until, now=now)) or "no new window with enough mature labels"


STEPS: dict[str, Callable[..., str]] = {"profile": profile_windows, "drift": drift, "performance": performance}


def decide_and_alert(settings: Settings, spec: ModelSpec, *, caused_by: str, now: datetime) -> RowMapping:
    """Append the decision of the run `caused_by` and send its alert. A second call returns the row of the first."""
    from pipelines.monitoring.evidence import gather

    with session(settings, "pipeline") as connection:
        existing = decisions.decision_by(connection, model=spec.name, caused_by=caused_by)
    if existing is None:
        state = gather(settings, spec, now=now)
        decision = trigger.decide_retraining(state, Policy.of(spec), now)
        row = {
            "model": spec.name,
            "action": decision.action,
            "cause": decision.cause,
            "reason": decision.reason[:1000],
            "evidence": {**decision.evidence, "history": as_json(state)},
            "caused_by": caused_by,
            "decided_at": now,
            "alert": decision.alert[:1000] if decision.alert else None,
        }
        with session(settings, "pipeline") as connection:
            history.add(connection, retrain_decision, row)
    send_alerts(settings, model=spec.name, now=now)
    send_dead_letters(settings, model=spec.name, now=now)
    with session(settings, "pipeline") as connection:
        decision_row = decisions.decision_by(connection, model=spec.name, caused_by=caused_by)
    assert decision_row is not None  # noqa: S101  (appended above)
    return decision_row


def send_alerts(settings: Settings, *, model: str, now: datetime) -> int:
    """Send the unsent alerts of decisions, and return how many were sent. The next call retries failed alerts."""
    with session(settings, "pipeline") as connection:
        waiting = alerts.unsent_alerts(connection, model)
    sent = 0
    for row in waiting:
        facts = {"model": model, "decision": row["id"], "cause": row["cause"], "decided_at": row["decided_at"]}
        if alert.send(settings, f"{model}: {row['alert']}", **facts):
            with session(settings, "pipeline") as connection:
                alerts.mark_alerted(connection, row["id"], now=now)
            sent += 1
    return sent


def send_dead_letters(settings: Settings, *, model: str, now: datetime) -> int:
    """Send one alert for all new dead letters. Return their number, or 0 if the alert fails."""
    with session(settings, "pipeline") as connection:
        rows = alerts.unheard_dead_letters(connection, model)
    if not rows:
        return 0
    errors = ", ".join(sorted({str(row["error"]) for row in rows}))
    text = f"{model}: {len(rows)} answered predictions could not be logged (MariaDB error {errors}): see dead_letter"
    if not alert.send(settings, text, model=model, dead_letters=len(rows), errors=errors):
        return 0
    with session(settings, "pipeline") as connection:
        alerts.mark_dead_letters(connection, [row["id"] for row in rows], now=now)
    return len(rows)


def due(settings: Settings, *, model: str) -> str:
    """Return a line on the decision to retrain that waits for a training.

    Raises:
        NothingToDo: no decision waits.
    """
    with session(settings, "pipeline") as connection:
        waiting = decisions.open_retraining(connection, model)
    if waiting is None:
        raise NothingToDo(model=model, reason="no decision to retrain waits for a training")
    return f"decision {waiting['id']}, {waiting['cause']}: {waiting['reason']}"


def due_candidate(settings: Settings, *, model: str) -> str:
    """Return a line on the candidate that passed its gates and waits for a deployment.

    Raises:
        NothingToDo: no candidate waits.
    """
    with session(settings, "pipeline") as connection:
        version = decisions.open_candidate(connection, model)
    if version is None:
        raise NothingToDo(model=model, reason="no candidate that passed its gates waits for a deployment")
    return f"candidate version {version}"


def as_json(state: MonitoringState) -> object:
    """Convert the state to plain JSON. Times become ISO 8601 text with a Z."""
    text = json.dumps(asdict(state), default=lambda moment: f"{moment.isoformat()}Z")
    return json.loads(text)
