"""One stack from its start to its stop: prediction, retraining, scoring and rollback. Tests run in this order."""

import json
import re
import subprocess
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
import requests
from rich.console import Console
from sqlalchemy import text

from api.requests.row_type import example
from db.history import decisions
from db.session import session
from pipelines import registry
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.measures.metrics import judge, metric_value
from pipelines.spec import find_spec
from stack.demo.own_stack import shorten
from stack.demo.play import play
from stack.example_data import scenarios, worlds
from stack.example_data.scenario_names import Scenario
from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import STATES, end_of
from tests.e2e.conftest import MODEL, Stack, wait_for
from utils.clock import utc_now
from utils.settings import RESULTS_DB
from utils.version import code_commit


def predict(stack: Stack) -> Any:
    """Send a valid request to the service of MODEL and return the answer."""
    answer = stack.post("/predict", {"data": example(find_spec(stack.settings.models_dir, MODEL))})
    assert answer.status_code == 200, answer.text
    return answer.json()


def read_log_row(stack: Stack, prediction_id: str) -> Any:
    query = text("SELECT * FROM prediction_log WHERE prediction_id = :id")
    with session(stack.settings, "reader") as connection:
        return connection.execute(query, {"id": prediction_id}).mappings().one()


def read_deployments(stack: Stack) -> list[tuple[str, int]]:
    """Return the action and the version of each deployment row of MODEL, in order."""
    with session(stack.settings, "reader") as connection:
        query = text("SELECT action, version FROM deployment WHERE model = :model ORDER BY id")
        return [tuple(row) for row in connection.execute(query, {"model": MODEL})]


def macro_f1_after_shift(stack: Stack, version: int) -> float:
    """Return the macro F1 on 20,000 new rows of the shifted distribution. 0.01 is three standard errors."""
    people = scenarios.draw_people(MODEL, scenario=Scenario.SHIFT, end=utc_now(), rows=20_000, seed=11)
    bundle = registry.load(stack.settings, MODEL, version)
    scores = score(bundle.model, pool_from_frame(people.features, spec=bundle.spec, label=False), spec=bundle.spec)
    return metric_value("macro_f1", judge(people.labels.to_numpy(), scores, spec=bundle.spec))


def test_up_prints_addresses_credentials_and_a_curl_command_that_works(stack: Stack) -> None:
    assert stack.settings.airflow_password.get_secret_value() in stack.output
    assert stack.settings.mlflow_tracking_url in stack.output
    curl_command = stack.output[stack.output.index("curl", stack.output.index(f"{MODEL} answers")) :]
    match = re.match(r"(?s)curl.*?'\n|curl.*", curl_command)
    assert match
    process = subprocess.run(["bash", "-c", match[0]], capture_output=True, text=True, check=True)
    answer = json.loads(process.stdout)
    assert answer["prediction"] in {"Poor", "Standard", "Good"}
    assert read_log_row(stack, answer["prediction_id"])["prediction"] == answer["prediction"]


def test_status_shows_healthy_parts_and_the_version_of_each_model(stack: Stack) -> None:
    status = stack.status()
    assert all(part["healthy"] for part in status["parts"]), status
    assert {"mariadb", "mlflow", f"serve-{MODEL}"} <= {part["name"] for part in status["parts"]}
    versions = {model["name"]: model["version"] for model in status["models"]}
    assert set(versions) == {"churn", "credit_score", "insurance"}
    assert all(versions.values())
    assert versions[MODEL] == predict(stack)["version"]


def test_a_prediction_is_traced_back_to_run_snapshot_and_commit(stack: Stack) -> None:
    answer = predict(stack)
    lineage = json.loads(stack.run("lineage", answer["prediction_id"], "--json").stdout)
    assert lineage["version"] == answer["version"]
    assert lineage["run_id"].startswith(f"{MODEL}_training/")
    assert lineage["trained_because"] == "manual: first training"
    # If somebody edits a file during the tests, only one of the two names ends in -dirty.
    assert lineage["code_commit"].removesuffix("-dirty") == code_commit().removesuffix("-dirty")
    assert (stack.settings.snapshots / lineage["snapshot_path"]).is_file()


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    deployments_before, serving_version = read_deployments(stack), predict(stack)["version"]
    run_count = len(Airflow(stack.settings).runs(f"{MODEL}_training"))
    stack.run("up")
    assert read_deployments(stack) == deployments_before
    assert len(Airflow(stack.settings).runs(f"{MODEL}_training")) == run_count
    assert predict(stack)["version"] == serving_version


def test_a_shift_in_the_requests_leads_to_a_retraining_and_a_better_version(stack: Stack) -> None:
    """The test only sends HTTP requests. Airflow monitors, retrains, promotes and deploys by itself."""
    file, pids = stack.settings.models_dir / f"{MODEL}.yaml", worker_pids(stack)
    original_content, old_version = file.read_text(), predict(stack)["version"]
    try:
        shorten(file)
        spec = find_spec(stack.settings.models_dir, MODEL)
        outcome = play(stack.settings, spec, scenario=Scenario.SHIFT, console=Console(), alerts=[])
    finally:
        file.write_text(original_content)
    assert outcome.problems == []
    assert outcome.quality
    # A second training may have started before the version of the first training was live.
    wait_for(lambda: is_idle(stack), Airflow(stack.settings))
    answer = predict(stack)
    new_version = answer["version"]
    assert macro_f1_after_shift(stack, new_version) > macro_f1_after_shift(stack, old_version)
    lineage = json.loads(stack.run("lineage", answer["prediction_id"], "--json").stdout)
    runs = {f"{MODEL}_training/{run['dag_run_id']}": run for run in Airflow(stack.settings).runs(f"{MODEL}_training")}
    training = runs[lineage["run_id"]]
    assert (training["run_type"], training["state"]) == ("asset_triggered", "success")
    assert lineage["trained_because"].startswith(("drift: ", "performance: "))
    assert worker_pids(stack) == pids


def is_idle(stack: Stack) -> bool:
    """Whether no training or deployment of MODEL runs, and no decision or candidate waits."""
    airflow = Airflow(stack.settings)
    runs = [run for kind in ("training", "deployment") for run in airflow.runs(f"{MODEL}_{kind}")]
    with session(stack.settings, "reader") as connection:
        open_rows = decisions.open_retraining(connection, MODEL), decisions.open_candidate(connection, MODEL)
    return not any(open_rows) and all(run["state"] in {"success", "failed"} for run in runs)


def test_airflow_has_a_connection_to_the_feature_store(stack: Stack) -> None:
    connection = stack.airflow("connections/feature_store")
    assert (connection["conn_type"], connection["login"]) == ("mysql", "evergreen_pipeline")


def test_a_training_started_through_airflows_api_ends_in_a_version_that_serves_and_logs(stack: Stack) -> None:
    """New labels are loaded. The candidate is compared with the champion, promoted, and served without a restart."""
    champion, pids = predict(stack)["version"], worker_pids(stack)
    window_end = utc_now() + timedelta(days=60)
    history = worlds.example_world(MODEL, end=window_end)
    newer_file = stack.folder / "newer.csv"
    history[history["date"] > utc_now()].to_csv(newer_file, index=False)
    load_report = json.loads(stack.run("load", MODEL, str(newer_file), "--json").stdout)
    assert load_report["labels_added"] > 5000
    airflow = Airflow(stack.settings)
    conf = {"window_end": f"{window_end:%Y-%m-%dT%H:%M:%SZ}", "trials": 2, "reason": "two more months"}
    run_id = airflow.trigger(f"{MODEL}_training", conf)
    assert end_of(airflow, f"{MODEL}_training", run_id) == "success"
    with session(stack.settings, "reader") as connection:
        query = text("SELECT verdict, reason, champion_version FROM promotion_decision WHERE run_id = :id")
        verdict = connection.execute(query, {"id": f"{MODEL}_training/{run_id}"}).mappings().one()
    assert (verdict["verdict"], verdict["champion_version"]) == ("promote", champion), verdict
    wait_for(lambda: predict(stack)["version"] > champion and read_deployments(stack)[-1][0] == "live", airflow)
    answer = predict(stack)
    row = read_log_row(stack, answer["prediction_id"])
    assert (row["version"], row["prediction"]) == (answer["version"], answer["prediction"])
    assert worker_pids(stack) == pids


def test_a_scoring_started_through_airflows_api_ends_in_a_table_of_results(stack: Stack) -> None:
    airflow, serving_version = Airflow(stack.settings), predict(stack)["version"]
    conf = {"query": f"SELECT * FROM {MODEL}_latest LIMIT 100", "table": "scored_here"}
    run_id = airflow.trigger(f"{MODEL}_scoring", conf)
    ended_tasks = airflow.count_tasks(f"{MODEL}_scoring", STATES["ended"])
    assert end_of(airflow, f"{MODEL}_scoring", run_id) == "success"
    # `end_of` stops waiting if this number does not grow.
    assert airflow.count_tasks(f"{MODEL}_scoring", STATES["ended"]) > ended_tasks
    with session(stack.settings, "reader", RESULTS_DB) as connection:
        rows = connection.execute(text("SELECT batch_id, version FROM scored_here")).all()
    assert len(rows) == 100
    assert {row.version for row in rows} == {serving_version}
    path = f"dags/{MODEL}_scoring/dagRuns/{quote(run_id)}/taskInstances/score/xcomEntries/return_value"
    assert f"evergreen_results.scored_here where batch_id = '{rows[0].batch_id}'" in stack.airflow(path)["value"]


def test_the_training_task_in_airflow_links_to_its_version_in_mlflow(stack: Stack) -> None:
    newest_run_id = Airflow(stack.settings).runs(f"{MODEL}_training", limit=1)[0]["dag_run_id"]
    links = stack.airflow(f"dags/{MODEL}_training/dagRuns/{quote(newest_run_id)}/taskInstances/train/links")
    assert f"{stack.settings.mlflow_tracking_url}/#/models/{MODEL}/versions/" in links["extra_links"]["MLflow"]
    assert requests.get(links["extra_links"]["MLflow"], timeout=10).status_code == 200


def test_after_a_rollback_the_previous_version_serves(stack: Stack) -> None:
    serving_version = predict(stack)["version"]
    rollback = json.loads(stack.run("rollback", MODEL, "--reason", "a test", "--json").stdout)
    assert rollback["version"] < serving_version
    assert predict(stack)["version"] == rollback["version"]


def test_a_new_model_file_gets_its_own_dags(stack: Stack) -> None:
    content = (stack.settings.models_dir / f"{MODEL}.yaml").read_text()
    (stack.settings.models_dir / "another.yaml").write_text(content.replace("name: credit_score", "name: another", 1))
    try:
        for kind in ("training", "deployment"):
            Airflow(stack.settings).wait_for_dag(f"another_{kind}")
        assert "another has no data yet: evergreen load another FILE" in stack.run("up").stdout
    finally:
        (stack.settings.models_dir / "another.yaml").unlink()


def test_after_down_and_up_the_stack_has_the_same_deployments_and_version(stack: Stack) -> None:
    deployments_before, serving_version = read_deployments(stack), predict(stack)["version"]
    stack.run("down")
    with pytest.raises(requests.ConnectionError):
        requests.get(stack.url, timeout=5)
    stack.run("up")
    assert predict(stack)["version"] == serving_version
    assert read_deployments(stack) == deployments_before


def worker_pids(stack: Stack) -> set[int]:
    """Return the process ids of the workers of MODEL that sent a heartbeat in the last 10 seconds."""
    with session(stack.settings, "reader") as connection:
        query = text(
            "SELECT pid FROM instance WHERE model = :model AND heartbeat_at > UTC_TIMESTAMP(6) - INTERVAL 10 SECOND"
        )
        return set(connection.execute(query, {"model": MODEL}).scalars())
