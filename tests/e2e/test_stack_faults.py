"""Parts are killed between a decision to retrain and its verdict. Each decision is still trained exactly once.

The tests use the stack of `test_stack.py`, which runs before. During every test the champion must answer requests.
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

MODEL = "churn"  # small and without event times, so a training takes seconds
TRAINING, MONITORING, DEPLOYMENT = (f"{MODEL}_{kind}" for kind in ("training", "monitoring", "deployment"))
SCHEDULER = "airflow-scheduler"


@pytest.fixture(autouse=True)
def versions(stack: Stack) -> Iterator[list[int]]:
    """The version of each answer since the test began. The test fails if a request gets no answer."""
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


def query_rows(stack: Stack, query: str, **values: object) -> list[Any]:
    with session(stack.settings, "reader") as connection:
        return list(connection.execute(text(query), values).mappings())


def decide(stack: Stack) -> int:
    """Append a decision to retrain as monitoring does after a drift, but send no event. Return its id."""
    test_id = uuid4()
    return training_runs.record_decision(
        stack.settings,
        model=MODEL,
        cause="drift",
        reason=f"test {test_id}",
        caused_by=f"{MONITORING}/{test_id}",
        now=utc_now(),
    )


def send_event(stack: Stack) -> None:
    """Send the event that the task `announce` sends."""
    assets = stack.airflow(f"assets?name_pattern=retrain/{MODEL}")["assets"]
    stack.airflow("assets/events", {"asset_id": assets[0]["id"]}, method="POST")


def run_that_claimed(stack: Stack, decision: int) -> str | None:
    """Return Airflow's id of the run that has claimed `decision`, or None."""
    run_id = query_rows(stack, "SELECT run_id FROM retrain_decision WHERE id = :id", id=decision)[0]["run_id"]
    return str(run_id).removeprefix(f"{TRAINING}/") if run_id else None


def task_of(airflow: Airflow, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
    return next(task for task in airflow.tasks(dag_id, run_id) if task["task_id"] == task_id)


def assert_trained_once(stack: Stack, decision: int, *, failed_runs: tuple[str, ...] = ()) -> str:
    """Assert that exactly one run trained for `decision` after the runs `failed_runs`, and return its id.

    The run has registered each version once, and deployed once if its candidate was promoted.
    """
    airflow = Airflow(stack.settings)
    run = wait_for(lambda: run_that_claimed(stack, decision), airflow)
    assert run
    assert end_of(airflow, TRAINING, run) == "success"
    assert run_that_claimed(stack, decision) == run
    reason = query_rows(stack, "SELECT reason FROM retrain_decision WHERE id = :id", id=decision)[0]["reason"]
    query = "SELECT run_id, state FROM training_run WHERE INSTR(reason, :reason) ORDER BY started_at"
    trainings = [(row["run_id"], row["state"]) for row in query_rows(stack, query, reason=reason)]
    assert trainings == [
        *((f"{TRAINING}/{failed_run}", "failed") for failed_run in failed_runs),
        (f"{TRAINING}/{run}", "finished"),
    ]
    query = "SELECT verdict, deployment_run_id FROM promotion_decision WHERE run_id = :run"
    [verdict] = query_rows(stack, query, run=f"{TRAINING}/{run}")
    if verdict["verdict"] == "promote":
        deployment = wait_for(
            lambda: query_rows(stack, query, run=f"{TRAINING}/{run}")[0]["deployment_run_id"], airflow
        )
        assert end_of(airflow, DEPLOYMENT, deployment.removeprefix(f"{DEPLOYMENT}/")) == "success"
        actions = query_rows(stack, "SELECT action FROM deployment WHERE caused_by = :run ORDER BY id", run=deployment)
        assert [row["action"] for row in actions] == ["deploy", "live"]
    assert registered_versions(stack) == decided_versions(stack)
    return run


def registered_versions(stack: Stack) -> list[int]:
    """Return the numbers of the model's versions in MLflow."""
    address = f"{stack.settings.mlflow_tracking_url}/api/2.0/mlflow/model-versions/search"
    model_versions = requests.get(address, params={"filter": f"name='{MODEL}'"}, timeout=10).json()["model_versions"]
    return sorted(int(version["version"]) for version in model_versions)


def decided_versions(stack: Stack) -> list[int]:
    """Return the versions in the rows of verdicts: each candidate and its final fit."""
    verdict_rows = query_rows(
        stack, "SELECT candidate_version c, promoted_version p FROM promotion_decision WHERE model = :m", m=MODEL
    )
    return sorted({version for row in verdict_rows for version in (row["c"], row["p"]) if version})


def start_search(airflow: Airflow) -> tuple[str, int]:
    """Start a training and wait until its search runs, which then takes some seconds. Return run id and process id."""
    run = airflow.trigger(TRAINING, {"trials": 20, "reason": "long enough to be killed"})

    def find_pid() -> int:
        task = task_of(airflow, TRAINING, run, "search")
        return int(task["pid"] or 0) if task["state"] == "running" else 0

    return run, wait_for(find_pid, airflow)


def kill_scheduler(stack: Stack) -> None:
    """Kill the scheduler, and wait until the supervisor has started a new one."""
    supervisor, airflow = Supervisor(stack.settings), Airflow(stack.settings)
    pid = wait_for(lambda: supervisor.states()[SCHEDULER].pid, airflow)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: supervisor.states()[SCHEDULER].pid not in {0, pid}, airflow)


def test_a_decision_without_an_event_is_announced_by_the_next_monitoring_and_trained_once(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    runs_before = {run["dag_run_id"] for run in airflow.runs(TRAINING, limit=100)}
    airflow.trigger(MONITORING, {})
    wait_for(lambda: run_that_claimed(stack, decision), airflow)
    send_event(stack)
    training_run = assert_trained_once(stack, decision)
    wait_for(lambda: len({run["dag_run_id"] for run in airflow.runs(TRAINING, limit=100)} - runs_before) == 2, airflow)
    [later_run] = {run["dag_run_id"] for run in airflow.runs(TRAINING, limit=100)} - runs_before - {training_run}
    assert end_of(airflow, TRAINING, later_run) == "success"
    assert {task["state"] for task in airflow.tasks(TRAINING, later_run)} == {"skipped"}
    log = stack.airflow(f"dags/{TRAINING}/dagRuns/{quote(later_run)}/taskInstances/claim/logs/1")["content"]
    assert "no decision to retrain waits for a run" in str(log)


def test_a_decision_is_trained_once_although_the_scheduler_is_killed_around_its_event(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    kill_scheduler(stack)
    monitoring_run = airflow.trigger(MONITORING, {})
    wait_for(
        lambda: task_of(airflow, MONITORING, monitoring_run, "announce")["state"] in {"running", "success"}, airflow
    )
    kill_scheduler(stack)
    assert_trained_once(stack, decision)
    assert end_of(airflow, MONITORING, monitoring_run) == "success"


def test_a_training_whose_process_is_killed_is_retried_and_registers_one_candidate(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    run, pid = start_search(airflow)
    process = psutil.Process(pid)
    assert Supervisor(stack.settings).pid() in {parent.pid for parent in process.parents()}
    process.kill()
    assert assert_trained_once(stack, decision) == run
    assert task_of(airflow, TRAINING, run, "search")["try_number"] == 2


def test_a_decision_is_trained_by_the_next_run_if_a_person_marks_its_run_as_failed(stack: Stack) -> None:
    airflow, decision = Airflow(stack.settings), decide(stack)
    run, _ = start_search(airflow)
    stack.airflow(f"dags/{TRAINING}/dagRuns/{quote(run)}", {"state": "failed"}, method="PATCH")
    assert run_that_claimed(stack, decision) == run  # no task runs after this that would release the decision
    airflow.trigger(MONITORING, {})
    wait_for(lambda: run_that_claimed(stack, decision) != run, airflow)
    assert assert_trained_once(stack, decision, failed_runs=(run,)) != run


def test_after_a_failed_task_there_is_one_alert_and_the_next_run_trains_the_decision(
    stack: Stack, versions: list[int]
) -> None:
    airflow, decision, file = Airflow(stack.settings), decide(stack), stack.settings.models_dir / f"{MODEL}.yaml"
    original_content = file.read_text()
    content = yaml.safe_load(original_content)
    content["features"]["columns"]["tenure_months"]["max"] = 1  # nearly every row breaks this rule
    file.write_text(yaml.safe_dump(content))
    try:
        run = airflow.trigger(TRAINING, {"reason": "a wrong rule"})
        assert end_of(airflow, TRAINING, run) == "failed"
    finally:
        file.write_text(original_content)
    assert task_of(airflow, TRAINING, run, "validate")["state"] == "failed"
    assert run_that_claimed(stack, decision) is None
    wait_for(lambda: alerts_of(stack, run), airflow)
    assert len(set(versions)) == 1  # the champion
    send_event(stack)
    assert assert_trained_once(stack, decision, failed_runs=(run,)) != run
    assert [alert["task"] for alert in alerts_of(stack, run)] == ["validate"]
    assert len(alert_lines(stack, run)) == 1


def alerts_of(stack: Stack, run: str) -> list[dict[str, Any]]:
    """Return the alerts about `run` that the webhook has received."""
    return [alert for alert in stack.alerts if alert.get("run") == run]


def alert_lines(stack: Stack, run: str) -> list[str]:
    """Return the lines about `run` in the log of Airflow's DAG processor, which runs the callbacks for failures."""
    folder = stack.settings.home / "airflow" / "logs" / "dag_processor"
    files = {file.resolve() for file in folder.rglob("*.log")}
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    return [line for line in lines if "alert: " in line and quote(run) in line]
