"""Parts are killed between a decision's row, its event, its claim and its verdict. Nothing is lost or done twice.

The tests use the stack of `test_stack.py`, which runs before. A champion answers during every test.
"""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psutil
import pytest
import requests
import yaml
from sqlalchemy import text

from api.requests.row_type import example
from db.session import session
from pipelines.runs import training_runs
from pipelines.spec import find_spec
from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import end_of
from stack.programs.supervisor import Supervisor
from tests.e2e.conftest import Stack, wait_for
from utils.clock import utc_now

MODEL = "churn"  # small and without time, so a training takes seconds
TRAINING, MONITORING, DEPLOYMENT = (f"{MODEL}_{kind}" for kind in ("training", "monitoring", "deployment"))
SCHEDULER = "airflow-scheduler"


@pytest.fixture(autouse=True)
def versions(stack: Stack) -> Iterator[list[int]]:
    """The versions that have answered since the test began. A request without an answer fails the test."""
    body, answers, failures = {"data": example(find_spec(stack.settings.models_dir, MODEL))}, [], []
    stop = threading.Event()

    def send_requests() -> None:
        while not stop.wait(0.2):
            try:
                answer = stack.post("/predict", body, model=MODEL)
                answer.raise_for_status()
            except requests.RequestException as error:
                failures.append(repr(error))
            else:
                answers.append(answer.json()["version"])

    client = threading.Thread(target=send_requests)
    client.start()
    try:
        yield answers
    finally:
        stop.set()
        client.join()
    assert answers
    assert not failures


def rows(stack: Stack, query: str, **values: object) -> list[Any]:
    with session(stack.settings, "reader") as connection:
        return list(connection.execute(text(query), values).mappings())


def decide(stack: Stack) -> int:
    """Append the decision that monitoring appends for a drift, without an event, and return its id."""
    name = uuid4()
    return training_runs.record_decision(
        stack.settings,
        model=MODEL,
        cause="drift",
        reason=f"test {name}",
        caused_by=f"{MONITORING}/{name}",
        now=utc_now(),
    )


def send_event(stack: Stack) -> None:
    """Send the event of `announce`, a second time or in its place."""
    assets = stack.airflow(f"assets?name_pattern=retrain/{MODEL}")["assets"]
    stack.airflow("assets/events", {"asset_id": assets[0]["id"]}, method="POST")


def claimant(stack: Stack, decision: int) -> str | None:
    """Airflow's id of the run that has claimed `decision`, or None."""
    run_id = rows(stack, "SELECT run_id FROM retrain_decision WHERE id = :id", id=decision)[0]["run_id"]
    return str(run_id).removeprefix(f"{TRAINING}/") if run_id else None


def task_of(airflow: Airflow, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
    return next(task for task in airflow.tasks(dag_id, run_id) if task["task_id"] == task_id)


def assert_trained_once(stack: Stack, decision: int, *, failed: tuple[str, ...] = ()) -> str:
    """Check that one run, after the `failed` ones, trained for `decision` and had each effect once. Returns its id."""
    airflow = Airflow(stack.settings)
    run = wait_for(lambda: claimant(stack, decision), airflow)
    assert run
    assert end_of(airflow, TRAINING, run) == "success"
    assert claimant(stack, decision) == run
    reason = rows(stack, "SELECT reason FROM retrain_decision WHERE id = :id", id=decision)[0]["reason"]
    query = "SELECT run_id, state FROM training_run WHERE INSTR(reason, :reason) ORDER BY started_at"
    trainings = [(row["run_id"], row["state"]) for row in rows(stack, query, reason=reason)]
    assert trainings == [*((f"{TRAINING}/{each}", "failed") for each in failed), (f"{TRAINING}/{run}", "finished")]
    query = "SELECT verdict, deployment_run_id FROM promotion_decision WHERE run_id = :run"
    [verdict] = rows(stack, query, run=f"{TRAINING}/{run}")
    if verdict["verdict"] == "promote":
        deployment = wait_for(lambda: rows(stack, query, run=f"{TRAINING}/{run}")[0]["deployment_run_id"], airflow)
        assert end_of(airflow, DEPLOYMENT, deployment.removeprefix(f"{DEPLOYMENT}/")) == "success"
        actions = rows(stack, "SELECT action FROM deployment WHERE caused_by = :run ORDER BY id", run=deployment)
        assert [row["action"] for row in actions] == ["deploy", "live"]
    assert registered(stack) == decided(stack)
    return run


def registered(stack: Stack) -> list[int]:
    """The model's versions in MLflow."""
    address = f"{stack.settings.mlflow_tracking_url}/api/2.0/mlflow/model-versions/search"
    model_versions = requests.get(address, params={"filter": f"name='{MODEL}'"}, timeout=10).json()["model_versions"]
    return sorted(int(version["version"]) for version in model_versions)


def decided(stack: Stack) -> list[int]:
    """The versions that the verdicts name: each candidate and its final fit."""
    verdicts = rows(
        stack, "SELECT candidate_version c, promoted_version p FROM promotion_decision WHERE model = :m", m=MODEL
    )
    return sorted({version for row in verdicts for version in (row["c"], row["p"]) if version})


def searching(airflow: Airflow) -> tuple[str, int]:
    """Start a training and wait for its search, which takes some seconds. Returns the run's id and the process id."""
    run = airflow.trigger(TRAINING, {"trials": 20, "reason": "long enough to be stopped"})

    def pid() -> int:
        task = task_of(airflow, TRAINING, run, "search")
        return int(task["pid"] or 0) if task["state"] == "running" else 0

    return run, wait_for(pid, airflow)


def kill_scheduler(stack: Stack) -> None:
    """Kill the scheduler and wait until the supervisor has started another."""
    supervisor, airflow = Supervisor(stack.settings), Airflow(stack.settings)
    pid = wait_for(lambda: supervisor.states()[SCHEDULER].pid, airflow)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: supervisor.states()[SCHEDULER].pid not in {0, pid}, airflow)


def test_a_decision_whose_event_was_never_sent_is_trained_once_whatever_is_announced_after(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    before = {run["dag_run_id"] for run in airflow.runs(TRAINING, limit=100)}
    airflow.trigger(MONITORING, {})
    wait_for(lambda: claimant(stack, decision), airflow)
    send_event(stack)
    first = assert_trained_once(stack, decision)
    wait_for(lambda: len({run["dag_run_id"] for run in airflow.runs(TRAINING, limit=100)} - before) == 2, airflow)
    [other] = {run["dag_run_id"] for run in airflow.runs(TRAINING, limit=100)} - before - {first}
    assert end_of(airflow, TRAINING, other) == "success"
    assert {task["state"] for task in airflow.tasks(TRAINING, other)} == {"skipped"}
    log = stack.airflow(f"dags/{TRAINING}/dagRuns/{quote(other)}/taskInstances/claim/logs/1")["content"]
    assert "no decision to retrain waits for a run" in str(log)


def test_a_scheduler_killed_after_the_row_and_at_the_event_loses_nothing_and_trains_once(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    kill_scheduler(stack)
    monitoring = airflow.trigger(MONITORING, {})
    wait_for(lambda: task_of(airflow, MONITORING, monitoring, "announce")["state"] in {"running", "success"}, airflow)
    kill_scheduler(stack)
    assert_trained_once(stack, decision)
    assert end_of(airflow, MONITORING, monitoring) == "success"


def test_a_training_whose_process_is_killed_is_retried_and_makes_one_candidate(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    run, pid = searching(airflow)
    process = psutil.Process(pid)
    assert Supervisor(stack.settings).pid() in {parent.pid for parent in process.parents()}
    process.kill()
    assert assert_trained_once(stack, decision) == run
    assert task_of(airflow, TRAINING, run, "search")["try_number"] == 2


def test_a_decision_whose_run_a_person_marked_as_failed_is_trained_by_the_next_run(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    run, _ = searching(airflow)
    stack.airflow(f"dags/{TRAINING}/dagRuns/{quote(run)}", {"state": "failed"}, method="PATCH")
    assert claimant(stack, decision) == run  # no step is left to release the decision
    airflow.trigger(MONITORING, {})
    wait_for(lambda: claimant(stack, decision) != run, airflow)
    assert assert_trained_once(stack, decision, failed=(run,)) != run


def test_a_failed_step_sends_one_alert_leaves_the_champion_and_the_next_run_picks_up(
    stack: Stack, versions: list[int]
) -> None:
    airflow, decision, file = Airflow(stack.settings), decide(stack), stack.settings.models_dir / f"{MODEL}.yaml"
    original = file.read_text()
    content = yaml.safe_load(original)
    content["features"]["columns"]["tenure_months"]["max"] = 1  # nearly every row breaks this rule
    file.write_text(yaml.safe_dump(content))
    try:
        run = airflow.trigger(TRAINING, {"reason": "a wrong rule"})
        assert end_of(airflow, TRAINING, run) == "failed"
    finally:
        file.write_text(original)
    assert task_of(airflow, TRAINING, run, "validate")["state"] == "failed"
    assert claimant(stack, decision) is None
    wait_for(lambda: alerts_of(stack, run), airflow)
    assert len(set(versions)) == 1
    send_event(stack)
    assert assert_trained_once(stack, decision, failed=(run,)) != run
    assert [alert["task"] for alert in alerts_of(stack, run)] == ["validate"]
    assert len(alert_lines(stack, run)) == 1


def alerts_of(stack: Stack, run: str) -> list[dict[str, Any]]:
    return [alert for alert in stack.alerts if alert.get("run") == run]


def alert_lines(stack: Stack, run: str) -> list[str]:
    """The alerts about `run` in the logs of Airflow's DAG processor, which runs the callbacks of failures."""
    folder = stack.settings.home / "airflow" / "logs" / "dag_processor"
    files = {file.resolve() for file in folder.rglob("*.log")}
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    return [line for line in lines if "alert: " in line and quote(run) in line]
