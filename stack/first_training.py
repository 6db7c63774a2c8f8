"""Start the first training of every model without a live version in Airflow, follow it, and report its steps."""

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

UNFINISHED_STATES = ("queued", "running")
TRAINING_POLL = 0.5  # seconds between two requests to Airflow


def train_first(settings: Settings, specs: Sequence[ModelSpec], steps: Steps, *, begun: float) -> None:
    """Train and deploy every model that has data and no live version. Wait until all of them are live.

    A run that is already under way, for example of an interrupted `up`, is followed instead of a new run. After a model
    is live, one request is sent to it. The printed line shows the time since `begun` (Unix time).

    Raises: StackError with the name and the error of the failed step.
    """
    airflow = Airflow(settings)
    waiting = [spec.name for spec in specs if not is_live(settings, spec.name)]
    with_query = {spec.name for spec in specs if spec.source.query}  # the first training of these models loads data
    runs = {
        model: _find_or_start_run(airflow, model)
        for model in waiting
        if model in with_query or latest_commit_seq(settings, model)
    }
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
    """Whether any version of `model` has been live in all workers."""
    with session(settings, "pipeline") as connection:
        return deployments.live(connection, model) is not None


def _find_or_start_run(airflow: Airflow, model: str) -> tuple[str, str]:
    """Return the DAG and the run to follow: an unfinished run, or a new training."""
    for dag_id in (f"{model}_training", f"{model}_deployment"):
        if unfinished_runs := airflow.runs(dag_id, states=UNFINISHED_STATES, limit=1):
            return dag_id, unfinished_runs[0]["dag_run_id"]
    return f"{model}_training", airflow.trigger(f"{model}_training", {"reason": "first training"})


def _follow_model(settings: Settings, airflow: Airflow, model: str, run: tuple[str, str], steps: Steps) -> None:
    dag_id, run_id = run
    if dag_id.endswith("_training"):
        run_after = airflow.run(dag_id, run_id)["run_after"]
        follow(airflow, dag_id, run_id, steps)
        _require_promotion(settings, model, f"{dag_id}/{run_id}")
        dag_id, run_id = f"{model}_deployment", _find_deployment_run(airflow, model, after=run_after)
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


def _find_deployment_run(airflow: Airflow, model: str, *, after: str) -> str:
    """Wait for the deployment run that the training's event starts, and return its id.

    `after` and Airflow's times are ISO 8601 in UTC, so they can be compared as text.
    """
    dag_id = f"{model}_deployment"

    def run_id() -> str:
        runs = airflow.runs(dag_id, limit=1)
        return str(runs[0]["dag_run_id"]) if runs and runs[0]["run_after"] >= after else ""

    awaited = f"a run of {dag_id} for the training's event ({airflow.url_of(dag_id)})"
    return patience(airflow, awaited, f"{model}_training", dag_id).until(run_id, every=TRAINING_POLL)


def follow(airflow: Airflow, dag_id: str, run_id: str, steps: Steps) -> str:
    """Show each step of a run as it ends. Return `done`, or `waits` if the run needs a person's approval.

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
            raise _build_error(airflow, dag_id, run_id, tasks)
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


def _build_error(airflow: Airflow, dag_id: str, run_id: str, tasks: list[dict[str, Any]]) -> StackError:
    page = airflow.url_of(dag_id, run_id)
    failed = next((task for task in tasks if task["state"] == "failed"), None)
    if failed is None:
        return StackError(f"{dag_id} failed: {page}")
    task = failed["task_id"]
    error = airflow.last_error(dag_id, run_id, task, failed["try_number"]) or "it wrote no error"
    return StackError(f"{dag_id} failed at step {task}: {error} (log: {page}/tasks/{task})")
