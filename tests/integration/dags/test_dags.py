"""The DAG files in a real Airflow: their definitions, and runs without work, with wrong data or a wrong model file."""

import itertools
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy import text

from db.admin import bootstrap
from db.session import session
from pipelines import registry
from pipelines.maintenance.duties import DUTIES
from pipelines.runs import training_runs
from pipelines.spec import find_spec
from stack.demo.webhook import webhook
from tests.integration.conftest import Small, put_into_service
from tests.integration.dags.runs import Airflow, airflow
from tests.services import spec_like_credit_score
from utils.settings import RESULTS_DB
from utils.version import ROOT

KINDS = ("training", "deployment", "monitoring", "scoring")


@pytest.fixture(scope="module")
def own_airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    with airflow(tmp_path_factory.mktemp("airflow")) as process:
        yield process


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model files, one whose candidates need approval, and an invalid one."""
    folder = tmp_path_factory.mktemp("models") / "models"
    shutil.copytree(ROOT / "models", folder)
    file = yaml.safe_load((folder / "credit_score.yaml").read_text())
    file["name"], file["gates"]["approval"], file["retrain"] = "asked_first", "human", {}
    (folder / "asked_first.yaml").write_text(yaml.safe_dump(file))
    (folder / "wrong.yaml").write_text("name: wrong\ntask: guessing\n")
    return folder


@pytest.fixture(scope="module")
def definitions(own_airflow: Airflow, models: Path) -> Any:
    return own_airflow.run(models)


def test_every_model_file_defines_dags_without_any_code(definitions: Any, models: Path) -> None:
    assert definitions["errors"] == {}
    expected = {f"{file.stem}_{kind}" for file in models.glob("*.yaml") for kind in KINDS}
    assert set(definitions["dags"]) == expected | {"maintenance"}
    assert all(dag["serialized"] and dag["doc"] for dag in definitions["dags"].values())


def test_training_steps_follow_each_other_and_are_retried(definitions: Any) -> None:
    tasks = definitions["dags"]["credit_score_training"]["tasks"]
    order = ["claim", "extract", "validate", "search", "train", "evaluate", "decide", "announce"]
    for earlier, later in itertools.pairwise(order):
        assert earlier in tasks[later]["after"]
    assert set(tasks) == {*order, "release"}
    assert all(tasks[name]["retries"] >= 2 for name in order)


def test_the_trigger_form_is_typed(definitions: Any) -> None:
    params = definitions["dags"]["credit_score_training"]["params"]
    assert params["window_end"]["format"] == "date-time"
    assert params["trials"]["minimum"] == 1
    assert params["reason"]["minLength"] == 1


def test_one_run_of_a_model_is_active_but_candidates_that_wait_for_approval_do_not_block(definitions: Any) -> None:
    dags = definitions["dags"]
    assert dags["credit_score_training"]["max_active_runs"] == dags["credit_score_deployment"]["max_active_runs"] == 1
    assert dags["asked_first_deployment"]["max_active_runs"] > 1
    assert "approve" in dags["asked_first_deployment"]["tasks"]["promote"]["after"]
    assert "approve" not in dags["credit_score_deployment"]["tasks"]


def test_an_invalid_model_file_becomes_a_task_that_fails_with_the_error_and_sends_an_alert(
    own_airflow: Airflow, definitions: Any, models: Path, tmp_path: Path
) -> None:
    assert "wrong.yaml: task" in definitions["dags"]["wrong_training"]["doc"]
    with webhook() as (address, messages):
        result = own_airflow.run(models, "wrong_training", "{}", hook=address)
    assert result["tasks"] == {"read_model_file": "failed"}
    assert "wrong.yaml: task" in result["log"]
    assert [(message["dag"], message["task"]) for message in messages] == [("wrong_training", "read_model_file")]


def test_every_dag_sends_an_alert_on_failure(definitions: Any) -> None:
    assert all(dag["notifies"] for dag in definitions["dags"].values())


def test_monitoring_steps_follow_each_other_and_run_at_the_borders_of_windows(definitions: Any) -> None:
    dag = definitions["dags"]["credit_score_monitoring"]
    order = ["release", "profile", "drift", "performance", "decide", "announce"]
    assert set(dag["tasks"]) == {*order, "announce_candidate"}
    for earlier, later in (*itertools.pairwise(order), ("release", "announce_candidate")):
        assert dag["tasks"][later]["after"] == [earlier]
    assert all(task["retries"] >= 2 for task in dag["tasks"].values())
    assert dag["max_active_runs"] == 1
    assert dag["params"]["window_end"]["format"] == "date-time"
    assert dag["schedule"] == "0 * * * *"


def test_the_scoring_form_takes_full_paths_and_names_of_tables_only(definitions: Any) -> None:
    dag = definitions["dags"]["credit_score_scoring"]
    assert dag["schedule"] is None
    assert dag["tasks"] == {"score": {"after": [], "retries": 0}}
    patterns = {name: schema.get("pattern") for name, schema in dag["params"].items()}
    for name, good, bad in (
        ("file", "/data/june.csv.gz", "june.csv"),
        ("out", "/data/scores.parquet", "/data/scores.xlsx"),
        ("table", "june_scores", "evergreen_store.credit_score_latest"),
    ):
        assert re.search(patterns[name], good)
        assert not re.search(patterns[name], bad)


def test_a_query_is_scored_into_a_table_and_the_run_logs_the_table(
    own_airflow: Airflow, small: Small, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    spec = spec_like_credit_score("scored_by_dag", tmp_path / "models")
    version = put_into_service(spec, tmp_path / "bundle", settings=small.settings, now=small.end)
    query = "SELECT * FROM small_score_latest WHERE entity_id LIKE 'CUS%'"
    conf = json.dumps({"query": query, "table": "by_dag", "out": str(tmp_path / "out.csv")})
    result = own_airflow.run(tmp_path / "models", "scored_by_dag_scoring", conf, settings=small.settings)
    assert result["tasks"] == {"score": "success"}
    with session(small.settings, "reader", RESULTS_DB) as connection:
        rows = connection.execute(
            text("SELECT batch_id, COUNT(*) AS n, MAX(version) AS v FROM by_dag GROUP BY 1")
        ).one()
        count = text("SELECT COUNT(*) FROM evergreen.prediction_log WHERE instance = :batch")
        assert connection.scalar(count, {"batch": str(rows.batch_id)}) == rows.n == 600
    assert rows.v == version
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 601
    assert f"600 rows scored by version {version}" in result["log"]
    assert f"evergreen_results.by_dag where batch_id = '{rows.batch_id}'" in result["log"]


def test_an_impossible_scoring_fails_at_once_with_one_line(own_airflow: Airflow, small: Small, tmp_path: Path) -> None:
    folder = small.settings.models_dir
    with webhook() as (address, messages):
        result = own_airflow.run(folder, "small_score_scoring", "{}", settings=small.settings, hook=address)
    assert result["tasks"] == {"score": "failed"}
    assert "give either a file or a query" in result["log"]
    assert [(message["dag"], message["task"]) for message in messages] == [("small_score_scoring", "score")]


def test_maintenance_is_daily_and_its_duties_are_independent(definitions: Any) -> None:
    dag = definitions["dags"]["maintenance"]
    assert set(dag["tasks"]) == {*DUTIES, "airflow"}
    assert all(task["after"] == [] and task["retries"] >= 2 for task in dag["tasks"].values())
    assert (dag["schedule"], dag["max_active_runs"]) == ("30 4 * * *", 1)


def test_maintenance_runs_each_duty_with_its_own_user_and_cleans_airflows_database(
    own_airflow: Airflow, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_folder, database = tmp_path / "models", own_airflow.home / "airflow.db"
    empty_folder.mkdir()
    result = own_airflow.run(empty_folder, "maintenance", "{}", settings=small.settings)
    # Without the database's address, the task `airflow` is skipped.
    assert result["tasks"] == {**dict.fromkeys(DUTIES, "success"), "airflow": "skipped"}
    with closing(sqlite3.connect(database)) as metadata, metadata:
        long_ago = "UPDATE dag_run SET start_date = '2020-01-01 00:00:00', run_type = 'manual'"
        assert metadata.execute(f"{long_ago} WHERE dag_id = 'maintenance'").rowcount
    monkeypatch.setenv("AIRFLOW__MAINTENANCE__SQL_ALCHEMY_CONN", f"sqlite:///{database}")
    second = own_airflow.run(empty_folder, "maintenance", "{}", settings=small.settings)
    assert second["tasks"] == dict.fromkeys([*DUTIES, "airflow"], "success")
    with closing(sqlite3.connect(database)) as metadata:
        runs_left = "SELECT COUNT(*) FROM dag_run WHERE dag_id = 'maintenance'"
        assert metadata.execute(runs_left).fetchone() == (1,)  # the run that cleaned up


def test_a_failed_duty_does_not_stop_the_others(own_airflow: Airflow, small: Small, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    wrong_password = small.settings.model_copy(update={"db_maintenance_password": SecretStr("wrong")})
    result = own_airflow.run(tmp_path / "models", "maintenance", "{}", settings=wrong_password)
    assert result["tasks"]["partitions"] == "failed"
    assert result["tasks"]["predictions"] == "success"  # predictions are kept for ever, so the duty needs no connection
    assert "refuses user 'evergreen_maintenance'" in result["log"]


def test_a_search_that_workers_share_is_opened_once_and_finished_by_the_next_step(
    own_airflow: Airflow, models: Path, tmp_path: Path
) -> None:
    tasks = own_airflow.run(models, search_tasks=2)["dags"]["churn_training"]["tasks"]
    for earlier, later in itertools.pairwise(("validate", "open", "explore", "search", "train")):
        assert earlier in tasks[later]["after"]


def test_a_deployment_without_a_candidate_is_skipped(own_airflow: Airflow, small: Small, tmp_path: Path) -> None:
    folder = small.settings.models_dir.parent / "bare"
    shutil.copytree(small.settings.models_dir, folder, dirs_exist_ok=True)
    file = yaml.safe_load((folder / "small_score.yaml").read_text()) | {"name": "never_trained"}
    (folder / "never_trained.yaml").write_text(yaml.safe_dump(file))
    result = own_airflow.run(folder, "never_trained_deployment", "{}", settings=small.settings)
    assert result["state"] == "success"
    assert set(result["tasks"].values()) == {"skipped"}


@pytest.mark.parametrize("over", [{}, {"connection": "crm"}], ids=["own MariaDB", "a connection of Airflow"])
def test_rows_of_a_query_are_pulled_before_the_run_is_claimed(
    own_airflow: Airflow, small: Small, tmp_path: Path, over: dict[str, str]
) -> None:
    query = "SELECT 's1' AS shop, '2026-01-01' AS day, 1.5 AS visits, 'no' AS closed"
    name = f"queried_{over.get('connection', 'here')}"
    model = {
        "name": name,
        "task": "binary",
        "entity": "shop",
        "source": {"event_time": "day", "query": query, **over},
        "label": {"column": "closed", "classes": ["no", "yes"]},
        "features": {"columns": {"visits": {"type": "numeric"}}},
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{name}.yaml").write_text(yaml.safe_dump(model))
    bootstrap.migrate(small.settings, [find_spec(tmp_path / "models", name).store])
    conf = json.dumps({"window_end": "2026-06-01T00:00:00Z", "reason": "a test"})
    result = own_airflow.run(tmp_path / "models", f"{name}_training", conf, settings=small.settings)
    steps = {"pull": "success", "claim": "success", "extract": "success", "validate": "success", "search": "failed"}
    assert result["tasks"] | steps == result["tasks"]  # the search fails: one row is too few to train on
    assert "no labels for the" in result["log"]


def test_a_failed_run_logs_one_line_reopens_its_decision_and_sends_no_asset_event(
    own_airflow: Airflow, small: Small, tmp_path: Path
) -> None:
    conf = json.dumps({"window_end": "2001-01-01T00:00:00Z", "reason": "too early"})
    with webhook() as (address, messages):
        folder = small.settings.models_dir
        result = own_airflow.run(folder, "small_score_training", conf, settings=small.settings, hook=address)
    assert result["state"] == "failed"
    assert [message["task"] for message in messages] == ["extract"]
    assert "small_score_training failed at extract" in messages[0]["text"]
    assert result["tasks"] | {"claim": "success", "extract": "failed", "release": "success"} == result["tasks"]
    assert "small_score: no label between" in result["log"]
    assert result["events"] == []


def test_wrong_data_stops_a_training_with_the_broken_rules_in_the_log_and_an_alert(
    own_airflow: Airflow, small: Small, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(small.settings.models_dir, folder)
    file = yaml.safe_load((folder / "small_score.yaml").read_text())
    columns = file["features"]["columns"]
    columns["age"]["max"], columns["interest_rate"]["min"], columns["credit_mix"]["values"] = 15, 99, ["Good"]
    (folder / "small_score.yaml").write_text(yaml.safe_dump(file))
    conf = json.dumps({"window_end": "2026-06-01T00:00:00Z", "reason": "wrong data"})
    with webhook() as (address, messages):
        result = own_airflow.run(folder, "small_score_training", conf, settings=small.settings, hook=address)
    assert result["tasks"] | {"extract": "success", "validate": "failed", "release": "success"} == result["tasks"]
    assert result["events"] == []
    assert [message["task"] for message in messages] == ["validate"]
    assert "what served before serves on" in messages[0]["text"]
    assert re.search(
        "breaks 3 rule.s.: age is above .*; interest_rate is below .*; credit_mix is none of", result["log"]
    )
    with session(small.settings, "reader") as connection:
        query = text(
            "SELECT r.run_id, r.state, r.mlflow_run_id, v.errors, d.run_id AS claimed_by FROM validation_report v"
            " JOIN training_run r ON r.run_id = v.run_id JOIN retrain_decision d ON d.caused_by = v.run_id"
            " WHERE d.reason = 'wrong data'"
        )
        (row,) = connection.execute(query).mappings()
    assert (row["state"], row["errors"], row["claimed_by"]) == ("failed", 3, None)
    mlflow = registry.client(small.settings)
    assert mlflow.get_run(row["mlflow_run_id"]).info.status == "FAILED"
    files = {artifact.path for artifact in mlflow.list_artifacts(row["mlflow_run_id"], "validation")}
    assert files == {"validation/report.json", "validation/report.html"}


def test_a_verdict_other_than_promote_sends_no_asset_event(own_airflow: Airflow, small: Small, tmp_path: Path) -> None:
    conf = json.dumps({"window_end": "2026-06-01T00:00:00Z", "reason": "a test", "trials": 1})
    strict = small.settings.models_dir.parent / "strict"
    shutil.copytree(small.settings.models_dir, strict, dirs_exist_ok=True)
    file = yaml.safe_load((strict / "small_score.yaml").read_text())
    file["gates"]["minimum"] = {"macro_f1": 0.99}
    (strict / "small_score.yaml").write_text(yaml.safe_dump(file))
    result = own_airflow.run(strict, "small_score_training", conf, settings=small.settings)
    assert result["tasks"] | {"decide": "success", "announce": "skipped"} == result["tasks"]
    assert result["state"] == "success"
    assert result["events"] == []


def test_monitoring_announces_open_decisions_and_releases_those_of_a_run_unknown_to_airflow(
    own_airflow: Airflow, small: Small, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(small.settings.models_dir, folder)
    file = yaml.safe_load((folder / "small_score.yaml").read_text()) | {"name": "unserved"}
    (folder / "unserved.yaml").write_text(yaml.safe_dump(file))
    spec = find_spec(folder, "unserved")
    idle = own_airflow.run(folder, "unserved_monitoring", "{}", settings=small.settings)
    expected = {"decide": "success", "announce": "skipped", "announce_candidate": "skipped"}
    assert idle["tasks"] | expected == idle["tasks"]
    assert idle["events"] == []
    run_id = "unserved_training/gone"
    training_runs.record_decision(
        small.settings, model="unserved", cause="manual", reason="a test", caused_by=run_id, now=small.end
    )
    training_runs.claim(small.settings, spec=spec, run_id=run_id, now=small.end, window_end=small.end)
    result = own_airflow.run(folder, "unserved_monitoring", "{}", settings=small.settings)
    assert result["state"] == "success"
    assert result["tasks"]["announce"] == "success"
    assert result["events"] == ["retrain/unserved"]
