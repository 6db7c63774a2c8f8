"""The steps of a monitoring run in their order: release, profile, drift, performance, decide.

Each reads and writes rows, and doing one again changes nothing. A run that dies anywhere is made up for by the next:
windows are counted from where the rows end, and a decision that no training has claimed wakes one again. What takes
long to import is imported by the step that needs it, for the DAG file reads their names at every parse.
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

ABANDONED = timedelta(days=1)  # a training outside Airflow that is still running after this is taken for dead
ENDED = {"success", "failed"}


def release(settings: Settings, *, model: str, state_of: Callable[[str], str | None], now: datetime) -> list[str]:
    """Open the decisions of trainings that died without saying so, for the next one; returns the ids of those.

    `state_of` gives Airflow's state of a run of the training DAG, None where it has none by that id. A training from
    the command line can't be asked for; its age tells.
    """
    with session(settings, "pipeline") as connection:
        running = trainings.trainings(connection, model=model, state="running")
    dead = []
    for run in running:
        run_id = str(run["run_id"])
        if run_id.startswith(f"{model}_training/"):
            state = state_of(run_id)
            gone = state is None or state in ENDED
        else:
            gone = now - run["started_at"] > ABANDONED
        if gone:
            training_steps.give_up(run_id, settings=settings, now=now)
            dead.append(run_id)
    return dead


def profile(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> str:
    from pipelines.monitoring import windows

    counted = windows.count_windows(settings, spec, until=until, now=now)
    return f"{counted} new windows"


def drift(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> str:
    from pipelines.monitoring import windows

    return "; ".join(windows.drift(settings, spec, until=until, now=now)) or "no new window with enough rows"


def performance(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> str:
    from pipelines.monitoring.performance import performance

    return "; ".join(performance(settings, spec, until=until, now=now)) or "no new window with enough mature labels"


STEPS: dict[str, Callable[..., str]] = {"profile": profile, "drift": drift, "performance": performance}


def decide(settings: Settings, spec: ModelSpec, *, caused_by: str, now: datetime) -> RowMapping:
    """Append the decision of the run `caused_by` and send its alert; a second call returns the row of the first."""
    from pipelines.monitoring.evidence import gather

    with session(settings, "pipeline") as connection:
        known = decisions.decision_by(connection, model=spec.name, caused_by=caused_by)
    if known is None:
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
        made = decisions.decision_by(connection, model=spec.name, caused_by=caused_by)
    assert made is not None  # noqa: S101  (appended above)
    return made


def send_alerts(settings: Settings, *, model: str, now: datetime) -> int:
    """Send the alerts of decisions that nobody heard of yet; returns how many. What fails is sent the next time."""
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
    """Alert of answered predictions that MariaDB refused for good, once each; returns how many they are."""
    with session(settings, "pipeline") as connection:
        dead = alerts.unheard_dead_letters(connection, model)
    if not dead:
        return 0
    errors = ", ".join(sorted({str(row["error"]) for row in dead}))
    text = f"{model}: {len(dead)} answered predictions could not be logged (MariaDB error {errors}): see dead_letter"
    if not alert.send(settings, text, model=model, dead_letters=len(dead), errors=errors):
        return 0
    with session(settings, "pipeline") as connection:
        alerts.mark_dead_letters(connection, [row["id"] for row in dead], now=now)
    return len(dead)


def due(settings: Settings, *, model: str) -> str:
    """The decision to retrain that waits for a training, in a line.

    Raises: NothingToDo where none does.
    """
    with session(settings, "pipeline") as connection:
        waiting = decisions.open_retraining(connection, model)
    if waiting is None:
        raise NothingToDo(model=model, reason="no decision to retrain waits for a training")
    return f"decision {waiting['id']}, {waiting['cause']}: {waiting['reason']}"


def due_candidate(settings: Settings, *, model: str) -> str:
    """The candidate that passed its gates and waits for a deployment, in a line.

    Raises: NothingToDo where none does.
    """
    with session(settings, "pipeline") as connection:
        version = decisions.open_candidate(connection, model)
    if version is None:
        raise NothingToDo(model=model, reason="no candidate that passed its gates waits for a deployment")
    return f"candidate version {version}"


def as_json(state: MonitoringState) -> object:
    """What is known of a model as JSON has it: times as ISO 8601 text with a Z."""
    shown = json.dumps(asdict(state), default=lambda moment: f"{moment.isoformat()}Z")
    return json.loads(shown)
