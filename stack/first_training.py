"""The first training of every model without a live version. Airflow trains; this module follows and reports."""

import time
from collections.abc import Sequence
from typing import Any

from db.history import decisions, deployments
from db.session import session
from db.store.loads import latest_commit_seq
from pipelines.spec import ModelSpec
from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import patience
from stack.progress import Steps
from stack.summary import first_answer
from utils.errors import StackError
from utils.settings import Settings

BUSY = ("queued", "running")
TRAINING_POLL = 0.5  # seconds


def train_first(settings: Settings, specs: Sequence[ModelSpec], steps: Steps, *, begun: float) -> None:
    """Train and deploy every model that has data and no live version. Return when all of them are live.

    A run that is already under way, for example after an interrupted `up`, is followed and not started again. Each
    model that goes live answers one request, and its line shows the time since `begun` (Unix time).

    Raises: StackError with the name and the error of the failed step.
    """
    airflow = Airflow(settings)
    waiting = [spec.name for spec in specs if not is_live(settings, spec.name)]
    with_query = {spec.name for spec in specs if spec.source.query}  # their first training loads their data
    runs = {m: _start(airflow, m) for m in waiting if m in with_query or latest_commit_seq(settings, m)}
    for model in waiting:
        if model not in runs:
            steps.say(f"  {model} has no data yet: evergreen load {model} FILE, then evergreen train {model}")
    for model, run in runs.items():
        _follow_model(settings, airflow, model, run, steps)
        if is_live(settings, model):
            version = first_answer(settings, model)["version"]
            since_start = time.time() - begun
            steps.line(f"{model}: answers", seconds=since_start, note=f"version {version}, time since the start")


def is_live(settings: Settings, model: str) -> bool:
    """Whether a version of `model` has ever been live in all workers."""
    with session(settings, "pipeline") as connection:
        return deployments.live(connection, model) is not None


def _start(airflow: Airflow, model: str) -> tuple[str, str]:
    """Return the DAG and the run to follow: the one under way, or a new training."""
    for dag_id in (f"{model}_training", f"{model}_deployment"):
        if busy := airflow.runs(dag_id, states=BUSY, limit=1):
            return dag_id, busy[0]["dag_run_id"]
    return f"{model}_training", airflow.trigger(f"{model}_training", {"reason": "first training"})


def _follow_model(settings: Settings, airflow: Airflow, model: str, run: tuple[str, str], steps: Steps) -> None:
    dag_id, run_id = run
    if dag_id.endswith("_training"):
        run_after = airflow.run(dag_id, run_id)["run_after"]
        follow(airflow, dag_id, run_id, steps)
        _require_promotion(settings, model, f"{dag_id}/{run_id}")
        dag_id, run_id = f"{model}_deployment", _deployment_run(airflow, model, after=run_after)
    if follow(airflow, dag_id, run_id, steps) == "waits":
        steps.say(f"  {model} waits for your approval: {airflow.url_of(dag_id, run_id)}")
    elif not is_live(settings, model):
        raise StackError(f"{dag_id} ended without a live version: {airflow.url_of(dag_id, run_id)}")


def _require_promotion(settings: Settings, model: str, run_id: str) -> None:
    with session(settings, "pipeline") as connection:
        decision = decisions.find_verdict(connection, run_id)
    if decision is None or decision["verdict"] != "promote":
        verdict_text = f"{decision['verdict']}: {decision['reason']}" if decision else "no verdict was recorded"
        raise StackError(f"the first model of {model} was not promoted ({verdict_text})")


def _deployment_run(airflow: Airflow, model: str, *, after: str) -> str:
    """The run that the training's event started. Both times are ISO 8601 in UTC, so they compare as text."""
    dag_id = f"{model}_deployment"

    def run_id() -> str:
        runs = airflow.runs(dag_id, limit=1)
        return str(runs[0]["dag_run_id"]) if runs and runs[0]["run_after"] >= after else ""

    awaited = f"a run of {dag_id} for the training's event ({airflow.url_of(dag_id)})"
    return patience(airflow, awaited, f"{model}_training", dag_id).until(run_id, every=TRAINING_POLL)


def follow(airflow: Airflow, dag_id: str, run_id: str, steps: Steps) -> str:
    """Show each step when it ends. Return `done`, or `waits` if the run needs a person's approval.

    Raises: StackError with the first failed step, its error and the address of its log; GaveUp.
    """
    shown_events: set[tuple[str, int]] = set()

    def outcome() -> str:
        state, tasks = airflow.run(dag_id, run_id)["state"], airflow.tasks(dag_id, run_id)
        for task in tasks:
            event = (task["task_id"], task["try_number"])
            if task["state"] in {"success", "up_for_retry"} and event not in shown_events:
                shown_events.add(event)
                _show_step(airflow, dag_id, run_id, task, steps)
        if state == "failed":
            raise _failure(airflow, dag_id, run_id, tasks)
        if state == "success":
            return "done"
        return "waits" if any(task["state"] == "awaiting_input" for task in tasks) else ""

    return patience(airflow, f"the end of {airflow.url_of(dag_id, run_id)}").until(outcome, every=TRAINING_POLL)


def _show_step(airflow: Airflow, dag_id: str, run_id: str, task: dict[str, Any], steps: Steps) -> None:
    name, seconds = f"{dag_id.rpartition('_')[0]}: {task['task_id']}", task["duration"] or 0.0
    if task["state"] == "success":
        return steps.line(name, seconds=seconds)
    error = airflow.last_error(dag_id, run_id, task["task_id"], task["try_number"])
    return steps.line(name, seconds=seconds, note=f"tries again: {error}", mark="[yellow]↻[/yellow]")


def _failure(airflow: Airflow, dag_id: str, run_id: str, tasks: list[dict[str, Any]]) -> StackError:
    page = airflow.url_of(dag_id, run_id)
    failed = next((task for task in tasks if task["state"] == "failed"), None)
    if failed is None:
        return StackError(f"{dag_id} failed: {page}")
    task = failed["task_id"]
    error = airflow.last_error(dag_id, run_id, task, failed["try_number"]) or "it wrote no error"
    return StackError(f"{dag_id} failed at step {task}: {error} (log: {page}/tasks/{task})")
