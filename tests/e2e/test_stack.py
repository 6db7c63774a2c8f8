"""From one command to a logged prediction, then the life of a model on the same stack. Tests run in this order."""

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
    answer = stack.post("/predict", {"data": example(find_spec(stack.settings.models_dir, MODEL))})
    assert answer.status_code == 200, answer.text
    return answer.json()


def log_row(stack: Stack, prediction_id: str) -> Any:
    query = text("SELECT * FROM prediction_log WHERE prediction_id = :id")
    with session(stack.settings, "reader") as connection:
        return connection.execute(query, {"id": prediction_id}).mappings().one()


def deployments(stack: Stack) -> list[tuple[str, int]]:
    with session(stack.settings, "reader") as connection:
        query = text("SELECT action, version FROM deployment WHERE model = :model ORDER BY id")
        return [tuple(row) for row in connection.execute(query, {"model": MODEL})]


def macro_f1_in_the_changed_world(stack: Stack, version: int) -> float:
    """The score on 20,000 people that are new to both versions. A difference of 0.01 is three standard errors."""
    people = scenarios.draw_people(MODEL, scenario=Scenario.SHIFT, end=utc_now(), rows=20_000, seed=11)
    bundle = registry.load(stack.settings, MODEL, version)
    scores = score(bundle.model, pool_from_frame(people.features, spec=bundle.spec, label=False), spec=bundle.spec)
    return metric_value("macro_f1", judge(people.labels.to_numpy(), scores, spec=bundle.spec))


def test_one_command_ends_with_addresses_credentials_and_a_request_that_works_when_pasted(stack: Stack) -> None:
    assert stack.settings.airflow_password.get_secret_value() in stack.output
    assert stack.settings.mlflow_tracking_url in stack.output
    command = stack.output[stack.output.index("curl", stack.output.index(f"{MODEL} answers")) :]
    match = re.match(r"(?s)curl.*?'\n|curl.*", command)
    assert match
    process = subprocess.run(["bash", "-c", match[0]], capture_output=True, text=True, check=True)
    answer = json.loads(process.stdout)
    assert answer["prediction"] in {"Poor", "Standard", "Good"}
    assert log_row(stack, answer["prediction_id"])["prediction"] == answer["prediction"]


def test_every_part_is_healthy_and_the_model_names_its_version(stack: Stack) -> None:
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
    # An edit of a file during the tests makes the later name dirty.
    assert lineage["code_commit"].removesuffix("-dirty") == code_commit().removesuffix("-dirty")
    assert (stack.settings.snapshots / lineage["snapshot_path"]).is_file()


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    before, serving = deployments(stack), predict(stack)["version"]
    runs = len(Airflow(stack.settings).runs(f"{MODEL}_training"))
    stack.run("up")
    assert deployments(stack) == before
    assert len(Airflow(stack.settings).runs(f"{MODEL}_training")) == runs
    assert predict(stack)["version"] == serving


def test_a_shift_in_the_log_leads_to_a_retraining_and_a_better_version_in_service(stack: Stack) -> None:
    """The test only sends requests over HTTP. Airflow does monitoring, retraining, promotion and deployment."""
    file, pids = stack.settings.models_dir / f"{MODEL}.yaml", worker_pids(stack)
    original, before = file.read_text(), predict(stack)["version"]
    try:
        shorten(file)
        spec = find_spec(stack.settings.models_dir, MODEL)
        outcome = play(stack.settings, spec, scenario=Scenario.SHIFT, console=Console(), alerts=[])
    finally:
        file.write_text(original)
    assert outcome.problems == []
    assert outcome.quality
    # A second training may have begun before the first one's version was live.
    wait_for(lambda: is_at_rest(stack), Airflow(stack.settings))
    answer = predict(stack)
    after = answer["version"]
    assert macro_f1_in_the_changed_world(stack, after) > macro_f1_in_the_changed_world(stack, before)
    lineage = json.loads(stack.run("lineage", answer["prediction_id"], "--json").stdout)
    runs = {f"{MODEL}_training/{run['dag_run_id']}": run for run in Airflow(stack.settings).runs(f"{MODEL}_training")}
    training = runs[lineage["run_id"]]
    assert (training["run_type"], training["state"]) == ("asset_triggered", "success")
    assert lineage["trained_because"].startswith(("drift: ", "performance: "))
    assert worker_pids(stack) == pids


def is_at_rest(stack: Stack) -> bool:
    """Whether no training or deployment runs, and no decision or candidate waits for one."""
    airflow = Airflow(stack.settings)
    runs = [run for kind in ("training", "deployment") for run in airflow.runs(f"{MODEL}_{kind}")]
    with session(stack.settings, "reader") as connection:
        waiting = decisions.open_retraining(connection, MODEL), decisions.open_candidate(connection, MODEL)
    return not any(waiting) and all(run["state"] in {"success", "failed"} for run in runs)


def test_the_feature_store_connection_is_visible_in_airflow(stack: Stack) -> None:
    connection = stack.airflow("connections/feature_store")
    assert (connection["conn_type"], connection["login"]) == ("mysql", "evergreen_pipeline")


def test_a_training_through_airflows_api_ends_in_a_served_and_logged_prediction(stack: Stack) -> None:
    """New labels arrive. A candidate is compared with the champion on them, promoted, and served without a restart."""
    champion, pids = predict(stack)["version"], worker_pids(stack)
    later = utc_now() + timedelta(days=60)
    world = worlds.example_world(MODEL, end=later)
    newer = stack.folder / "newer.csv"
    world[world["date"] > utc_now()].to_csv(newer, index=False)
    loaded = json.loads(stack.run("load", MODEL, str(newer), "--json").stdout)
    assert loaded["labels_added"] > 5000
    airflow = Airflow(stack.settings)
    conf = {"window_end": f"{later:%Y-%m-%dT%H:%M:%SZ}", "trials": 2, "reason": "two more months"}
    run_id = airflow.trigger(f"{MODEL}_training", conf)
    assert end_of(airflow, f"{MODEL}_training", run_id) == "success"
    with session(stack.settings, "reader") as connection:
        query = text("SELECT verdict, reason, champion_version FROM promotion_decision WHERE run_id = :id")
        verdict = connection.execute(query, {"id": f"{MODEL}_training/{run_id}"}).mappings().one()
    assert (verdict["verdict"], verdict["champion_version"]) == ("promote", champion), verdict
    wait_for(lambda: predict(stack)["version"] > champion and deployments(stack)[-1][0] == "live", airflow)
    answer = predict(stack)
    row = log_row(stack, answer["prediction_id"])
    assert (row["version"], row["prediction"]) == (answer["version"], answer["prediction"])
    assert worker_pids(stack) == pids


def test_a_scoring_through_airflows_api_ends_in_a_table_of_results_that_a_reader_sees(stack: Stack) -> None:
    airflow, serving = Airflow(stack.settings), predict(stack)["version"]
    conf = {"query": f"SELECT * FROM {MODEL}_latest LIMIT 100", "table": "scored_here"}
    run_id = airflow.trigger(f"{MODEL}_scoring", conf)
    before = airflow.count_tasks(f"{MODEL}_scoring", STATES["ended"])
    assert end_of(airflow, f"{MODEL}_scoring", run_id) == "success"
    assert airflow.count_tasks(f"{MODEL}_scoring", STATES["ended"]) > before  # the sign of progress for `end_of`
    with session(stack.settings, "reader", RESULTS_DB) as connection:
        rows = connection.execute(text("SELECT batch_id, version FROM scored_here")).all()
    assert len(rows) == 100
    assert {row.version for row in rows} == {serving}
    path = f"dags/{MODEL}_scoring/dagRuns/{quote(run_id)}/taskInstances/score/xcomEntries/return_value"
    assert f"evergreen_results.scored_here where batch_id = '{rows[0].batch_id}'" in stack.airflow(path)["value"]


def test_the_task_links_to_a_page_of_mlflow(stack: Stack) -> None:
    newest = Airflow(stack.settings).runs(f"{MODEL}_training", limit=1)[0]["dag_run_id"]
    links = stack.airflow(f"dags/{MODEL}_training/dagRuns/{quote(newest)}/taskInstances/train/links")
    assert f"{stack.settings.mlflow_tracking_url}/#/models/{MODEL}/versions/" in links["extra_links"]["MLflow"]
    assert requests.get(links["extra_links"]["MLflow"], timeout=10).status_code == 200


def test_a_rollback_serves_the_version_before(stack: Stack) -> None:
    serving = predict(stack)["version"]
    result = json.loads(stack.run("rollback", MODEL, "--reason", "a test", "--json").stdout)
    assert result["version"] < serving
    assert predict(stack)["version"] == result["version"]


def test_a_new_model_file_makes_new_dags_appear(stack: Stack) -> None:
    file = (stack.settings.models_dir / f"{MODEL}.yaml").read_text()
    (stack.settings.models_dir / "another.yaml").write_text(file.replace("name: credit_score", "name: another", 1))
    try:
        for kind in ("training", "deployment"):
            Airflow(stack.settings).wait_for_dag(f"another_{kind}")
        assert "another has no data yet: evergreen load another FILE" in stack.run("up").stdout
    finally:
        (stack.settings.models_dir / "another.yaml").unlink()


def test_after_a_stop_everything_continues_with_the_same_data(stack: Stack) -> None:
    before, serving = deployments(stack), predict(stack)["version"]
    stack.run("down")
    with pytest.raises(requests.ConnectionError):
        requests.get(stack.url, timeout=5)
    stack.run("up")
    assert predict(stack)["version"] == serving
    assert deployments(stack) == before


def worker_pids(stack: Stack) -> set[int]:
    with session(stack.settings, "reader") as connection:
        query = text(
            "SELECT pid FROM instance WHERE model = :model AND heartbeat_at > UTC_TIMESTAMP(6) - INTERVAL 10 SECOND"
        )
        return set(connection.execute(query, {"model": MODEL}).scalars())
