"""Batch scoring by the deployed version. Its results equal the service's answers, and all are logged."""

import json
import os
import time
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from sqlalchemy import text

from api.requests.schemas import build_schemas
from api.scoring.predict import LoadedVersion, Origin, predict
from db.admin import bootstrap
from db.log.prediction_ids import new_id
from db.session import session
from pipelines.artifact.learner import rows_of
from pipelines.batch_scoring.score import load_serving_version, score_rows, score_source
from pipelines.batch_scoring.sources import Source, file_source, query_source
from pipelines.loading.files import numbered
from pipelines.loading.loader import load_file
from stack.example_data import worlds
from stack.programs.program import settings_environment
from tests.commands import evergreen
from tests.integration.conftest import put_into_service
from tests.services import spec_like_credit_score
from utils.errors import AccessDenied, DataRefused, MissingColumns, NotFound, RowsRefused
from utils.settings import RESULTS_DB

MODEL, ROWS = "score_model", 300
NOW = datetime(2026, 11, 21, 12)


@pytest.fixture(scope="module")
def ready(mlflow_settings, tmp_path_factory):
    """Settings with `score_model`. Version 1 is in MLflow and deployed, and the store has the model's tables."""
    folder = tmp_path_factory.mktemp("models")
    spec = spec_like_credit_score(MODEL, folder)
    settings = mlflow_settings.model_copy(update={"models_dir": folder})
    bootstrap.migrate(settings, [spec.store])
    put_into_service(spec, folder / "bundle", settings=settings, now=NOW)
    return settings


@pytest.fixture(scope="module")
def scorer(ready):
    return load_serving_version(ready, MODEL)


@pytest.fixture(scope="module")
def people():
    """One row a customer, with missing values and with columns that scoring does not read."""
    world = worlds.example_world("credit_score", end=NOW, customers=ROWS)
    return world.drop_duplicates("customer_id", keep="last").reset_index(drop=True)


def score_file(path, ready, scorer, *, out=None, table=None):
    source = file_source(path, spec=scorer.bundle.spec)
    return score_source(source, serving=scorer, settings=ready, now=NOW, out=out, table=table)


def in_table(settings, name):
    """The rows of the table as a reader sees them, or None if the table does not exist."""
    with session(settings, "reader", RESULTS_DB) as connection:
        if not connection.scalar(
            text("SELECT COUNT(*) FROM information_schema.tables WHERE table_name = :n"), {"n": name}
        ):
            return None
        return pd.read_sql(text(f"SELECT * FROM `{name}` ORDER BY customer_id"), connection)


def log_rows(settings, batch):
    with session(settings, "reader") as connection:
        query = text("SELECT * FROM prediction_log WHERE instance = :batch")
        rows = connection.execute(query, {"batch": str(batch)}).mappings()
        return {str(row["prediction_id"]): row for row in rows}


def test_a_file_gets_the_services_answers_and_every_one_is_logged_with_its_version(ready, scorer, people, tmp_path):
    people.to_csv(tmp_path / "in.csv", index=False)
    batch = score_file(tmp_path / "in.csv", ready, scorer, out=tmp_path / "out.parquet")
    assert (batch.model, batch.version, batch.rows) == (MODEL, scorer.version, ROWS)
    results = pd.read_parquet(tmp_path / "out.parquet")
    assert list(results["customer_id"]) == list(people["customer_id"])
    assert list(results["date"]) == list(people["date"])

    schemas = build_schemas(scorer.bundle.spec)
    names = list(scorer.bundle.spec.features.columns)
    values = rows_of(people, spec=scorer.bundle.spec)
    rows = [
        schemas.row.validate_python({"customer_id": entity, **dict(zip(names, row_values, strict=True))})
        for entity, row_values in zip(people["customer_id"], values, strict=True)
    ]
    version = LoadedVersion(MODEL, scorer.version, scorer.bundle, scorer.seen_categories, {}, NOW, NOW)
    predictions = predict(version, rows, instance=new_id(NOW), origins=[Origin(time.perf_counter())] * ROWS, now=NOW)
    rows_in_log = log_rows(ready, batch.batch)
    assert len(rows_in_log) == ROWS
    for (_, result), prediction in zip(results.iterrows(), predictions, strict=True):
        answer, row = prediction.answer, rows_in_log[result["prediction_id"]]
        assert result["prediction"] == answer["prediction"] == row["prediction"]
        assert result["confidence"] == pytest.approx(answer["confidence"], abs=1e-12)
        assert result["probability_Poor"] == pytest.approx(answer["probabilities"]["Poor"], abs=1e-12)
        assert json.loads(row["probabilities"]) == pytest.approx(answer["probabilities"], abs=1e-12)
        assert result["warnings"] == "; ".join(answer["warnings"])
        assert json.loads(row["warnings"]) == answer["warnings"]
        assert json.loads(row["features"]) == json.loads(prediction.log_row[5])
        assert (row["version"], row["role"], row["entity_id"]) == (scorer.version, "champion", answer["entity_id"])
        assert row["created_at"] == row["logged_at"] == NOW


def test_rows_need_no_time_and_results_can_be_csv(ready, scorer, people, tmp_path):
    people.drop(columns=["date", "credit_score"]).to_parquet(tmp_path / "in.parquet")
    batch = score_file(tmp_path / "in.parquet", ready, scorer, out=tmp_path / "out.csv")
    results = pd.read_csv(tmp_path / "out.csv")
    assert len(results) == batch.rows == ROWS
    assert list(results.columns) == [
        "customer_id",
        "prediction",
        "confidence",
        "probability_Poor",
        "probability_Standard",
        "probability_Good",
        "warnings",
        "version",
        "predicted_at",
        "prediction_id",
    ]


def test_one_wrong_row_refuses_all_and_changes_neither_log_nor_file(ready, scorer, people, tmp_path):
    wrong = people.assign(age=people["age"].where(people.index != 7, 300))
    wrong.to_csv(tmp_path / "in.csv", index=False)
    (tmp_path / "out.csv").write_text("as it was")
    with session(ready, "reader") as connection:
        count = text("SELECT COUNT(*) FROM prediction_log WHERE model = :model")
        rows_before = connection.scalar(count, {"model": MODEL})
    with pytest.raises(RowsRefused, match="1 of 300 rows refused and nothing was scored; first: line 9, age = '300"):
        score_file(tmp_path / "in.csv", ready, scorer, out=tmp_path / "out.csv")
    with session(ready, "reader") as connection:
        assert connection.scalar(count, {"model": MODEL}) == rows_before
    assert (tmp_path / "out.csv").read_text() == "as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv"}


def test_missing_columns_and_wrong_file_names_are_errors(ready, scorer, people, tmp_path):
    people.drop(columns="age").to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(MissingColumns, match="age"):
        score_file(tmp_path / "in.csv", ready, scorer)
    with pytest.raises(NotFound, match=r"file .*none\.csv"):
        score_file(tmp_path / "none.csv", ready, scorer)
    people.to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(DataRefused, match=r"\.csv or \.parquet"):
        score_file(tmp_path / "in.csv", ready, scorer, out=tmp_path / "out.xlsx")
    with pytest.raises(NotFound, match="folder"):
        score_file(tmp_path / "in.csv", ready, scorer, out=tmp_path / "none" / "out.csv")


def test_the_rows_of_a_query_are_scored_like_the_rows_of_a_file(ready, scorer, people, tmp_path):
    people.to_csv(tmp_path / "in.csv", index=False)
    load_file(tmp_path / "in.csv", spec=scorer.bundle.spec, settings=ready, caused_by="t", now=NOW + timedelta(hours=1))
    query = f"SELECT * FROM {MODEL}_latest WHERE entity_id LIKE 'CUS%' AND event_time < '2026-12-01 00:00:00'"
    source = query_source(query, spec=scorer.bundle.spec, settings=ready)
    from_query = score_source(source, serving=scorer, settings=ready, now=NOW, out=tmp_path / "query.parquet")
    score_file(tmp_path / "in.csv", ready, scorer, out=tmp_path / "file.parquet")
    assert from_query.rows == ROWS
    query_results, file_results = (
        pd.read_parquet(tmp_path / f"{name}.parquet").sort_values("customer_id").drop(columns="prediction_id")
        for name in ("query", "file")
    )
    pd.testing.assert_frame_equal(query_results.reset_index(drop=True), file_results.reset_index(drop=True))


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("SELEKT 1", DataRefused, "the query can't be run"),
        ("SELECT 1 AS a, 2 AS a", DataRefused, "names a column twice"),
        ("SET @a = 1", DataRefused, "expected a SELECT"),
        ("SELECT 1 AS age", MissingColumns, "customer_id"),
        ("SELECT * FROM no_such_table", NotFound, "no_such_table"),
        (f"DELETE FROM {MODEL}_latest", AccessDenied, "evergreen_reader"),
    ],
)
def test_an_invalid_query_is_an_error(ready, scorer, query, error, message):
    with pytest.raises(error, match=message):
        query_source(query, spec=scorer.bundle.spec, settings=ready)


def test_a_table_has_the_same_rows_as_a_file_and_each_batch_adds_its_rows(ready, scorer, people, tmp_path):
    people.to_csv(tmp_path / "in.csv", index=False)
    first_batch = score_file(tmp_path / "in.csv", ready, scorer, out=tmp_path / "out.parquet", table="both")
    assert first_batch.table == "evergreen_results.both"
    table_rows = in_table(ready, "both")
    assert set(table_rows["batch_id"]) == {str(first_batch.batch)}
    assert set(table_rows["prediction_id"]) == set(log_rows(ready, first_batch.batch))
    file = pd.read_parquet(tmp_path / "out.parquet").sort_values("customer_id").reset_index(drop=True)
    assert [*file.columns, "batch_id"] == list(table_rows.columns)
    pd.testing.assert_frame_equal(table_rows.drop(columns="batch_id"), file, check_dtype=False)

    people.drop(columns="date").to_csv(tmp_path / "in.csv", index=False)
    second_batch = score_file(tmp_path / "in.csv", ready, scorer, table="both")
    table_rows = in_table(ready, "both")
    assert len(table_rows) == 2 * ROWS
    new_rows = table_rows[table_rows["batch_id"] == str(second_batch.batch)]
    assert len(new_rows) == ROWS
    assert new_rows["date"].isna().all()


def test_a_table_gets_no_row_of_a_batch_that_fails(ready, scorer, people, tmp_path):
    people.assign(age=people["age"].where(people.index != 7, 300)).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(RowsRefused, match="nothing was scored"):
        score_file(tmp_path / "in.csv", ready, scorer, table="wrong_rows")
    assert in_table(ready, "wrong_rows") is None

    spec, half = scorer.bundle.spec, people[: ROWS // 2]
    chunks = [pa.Table.from_pandas(half, preserve_index=False)]

    def failing_read(names):
        passes.append(names)
        yield from numbered([chunks[0].select(names)])
        if len(passes) > 1:  # the first pass looks for wrong rows
            raise DataRefused("the disk is gone")

    passes = []
    source = Source.of("breaking", chunks[0].column_names, failing_read, spec=spec)
    with pytest.raises(DataRefused, match="the disk is gone"):
        score_source(source, serving=scorer, settings=ready, now=NOW, table="broken_off")
    assert len(in_table(ready, "broken_off")) == 0


def test_a_table_that_holds_something_else_is_refused_before_anything_is_logged(ready, scorer, people, tmp_path):
    people.to_csv(tmp_path / "in.csv", index=False)
    with session(ready, "admin", RESULTS_DB) as connection:
        connection.execute(text("CREATE TABLE invoices (amount DOUBLE)"))
        connection.execute(text("CREATE TABLE of_another LIKE invoices"))
        connection.execute(text("ALTER TABLE of_another COMMENT = 'results of another_model'"))
        connection.execute(text("CREATE TABLE older (customer_id VARCHAR(64)) COMMENT = 'results of score_model'"))
        rows_before = connection.scalar(text("SELECT COUNT(*) FROM evergreen.prediction_log"))
    for name, message in (
        ("invoices", "evergreen_results.invoices is no table of results of score_model"),
        ("of_another", "is no table of results of score_model"),
        ("older", "other columns than the results of score_model now .*prediction"),
        ("score_model_latest; DROP TABLE x", "can't name a table"),
        ("evergreen_store.score_model_latest", "can't name a table"),
        ("Scores", "can't name a table"),
        ("", "can't name a table"),
    ):
        with pytest.raises(DataRefused, match=message) as refused:
            score_file(tmp_path / "in.csv", ready, scorer, table=name)
        assert "\n" not in str(refused.value)
    with session(ready, "reader") as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM prediction_log")) == rows_before


def test_rows_come_from_a_file_or_a_query_and_not_from_both_or_neither(ready):
    no_source: dict[str, Any] = {}
    for rows_from in (no_source, {"file": Path("in.csv"), "query": "SELECT 1"}):
        with pytest.raises(DataRefused, match="either a file or a query"):
            score_rows(ready, MODEL, now=NOW, **rows_from)


def test_before_the_first_deployment_no_version_can_score(ready):
    with pytest.raises(NotFound, match="evergreen train never_deployed"):
        load_serving_version(ready, "never_deployed")


def test_the_command_prints_its_result(ready, people, tmp_path):
    people.to_csv(tmp_path / "in.csv", index=False)
    environment = settings_environment(ready, secrets=("db_reader_password", "db_pipeline_password"))
    run = partial(evergreen, "score", MODEL, environment={**os.environ, **environment}, cwd=tmp_path)
    to_table = partial(run, "in.csv", "--out", "out.csv", "--table")
    process = to_table("told")
    assert process.returncode == 0, process.stderr
    assert "300 rows scored by version 1" in process.stdout
    report = json.loads(to_table("told", "--json").stdout)
    assert (report["rows"], report["version"], report["out"]) == (300, 1, "out.csv")
    assert f"evergreen_results.told where batch_id = '{in_table(ready, 'told')['batch_id'][0]}'" in process.stdout
    assert len(log_rows(ready, report["batch"])) == 300
    assert len(in_table(ready, "told")) == 600
    wrong_name = to_table("no-name")
    assert wrong_name.returncode == DataRefused.exit_code
    assert len(wrong_name.stderr.strip().splitlines()) == 1
    without_rows = run()
    assert without_rows.returncode == 2
    assert "either a file or --query" in without_rows.stderr
