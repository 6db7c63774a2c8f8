"""Batch scoring with the deployed version: results equal the answers of the service, and every result is logged."""

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
def model_settings(mlflow_settings, tmp_path_factory):
    """Settings of a store with the tables of `score_model`. Version 1 is registered in MLflow and deployed."""
    folder = tmp_path_factory.mktemp("models")
    spec = spec_like_credit_score(MODEL, folder)
    settings = mlflow_settings.model_copy(update={"models_dir": folder})
    bootstrap.migrate(settings, [spec.store])
    put_into_service(spec, folder / "bundle", settings=settings, now=NOW)
    return settings


@pytest.fixture(scope="module")
def serving(model_settings):
    """The deployed version."""
    return load_serving_version(model_settings, MODEL)


@pytest.fixture(scope="module")
def customers():
    """One row per customer, with missing values and with columns that scoring does not read."""
    history = worlds.example_world("credit_score", end=NOW, customers=ROWS)
    return history.drop_duplicates("customer_id", keep="last").reset_index(drop=True)


def score_file(path, model_settings, serving, *, out=None, table=None):
    source = file_source(path, spec=serving.bundle.spec)
    return score_source(source, serving=serving, settings=model_settings, now=NOW, out=out, table=table)


def read_results(settings, name):
    """Return the rows of a table of results as a reader sees them, or None if the table does not exist."""
    with session(settings, "reader", RESULTS_DB) as connection:
        if not connection.scalar(
            text("SELECT COUNT(*) FROM information_schema.tables WHERE table_name = :n"), {"n": name}
        ):
            return None
        return pd.read_sql(text(f"SELECT * FROM `{name}` ORDER BY customer_id"), connection)


def read_log(settings, batch):
    """Return prediction_id → row of the prediction log, for a batch."""
    with session(settings, "reader") as connection:
        query = text("SELECT * FROM prediction_log WHERE instance = :batch")
        rows = connection.execute(query, {"batch": str(batch)}).mappings()
        return {str(row["prediction_id"]): row for row in rows}


def test_results_of_a_file_equal_the_answers_of_the_service_and_are_logged(
    model_settings, serving, customers, tmp_path
):
    customers.to_csv(tmp_path / "in.csv", index=False)
    batch = score_file(tmp_path / "in.csv", model_settings, serving, out=tmp_path / "out.parquet")
    assert (batch.model, batch.version, batch.rows) == (MODEL, serving.version, ROWS)
    results = pd.read_parquet(tmp_path / "out.parquet")
    assert list(results["customer_id"]) == list(customers["customer_id"])
    assert list(results["date"]) == list(customers["date"])

    schemas = build_schemas(serving.bundle.spec)
    names = list(serving.bundle.spec.features.columns)
    values = rows_of(customers, spec=serving.bundle.spec)
    rows = [
        schemas.row.validate_python({"customer_id": entity, **dict(zip(names, row_values, strict=True))})
        for entity, row_values in zip(customers["customer_id"], values, strict=True)
    ]
    version = LoadedVersion(MODEL, serving.version, serving.bundle, serving.seen_categories, {}, NOW, NOW)
    predictions = predict(version, rows, instance=new_id(NOW), origins=[Origin(time.perf_counter())] * ROWS, now=NOW)
    rows_in_log = read_log(model_settings, batch.batch)
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
        assert (row["version"], row["role"], row["entity_id"]) == (serving.version, "champion", answer["entity_id"])
        assert row["created_at"] == row["logged_at"] == NOW


def test_rows_without_an_event_time_are_scored_into_a_csv_file(model_settings, serving, customers, tmp_path):
    customers.drop(columns=["date", "credit_score"]).to_parquet(tmp_path / "in.parquet")
    batch = score_file(tmp_path / "in.parquet", model_settings, serving, out=tmp_path / "out.csv")
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


def test_with_one_invalid_row_nothing_is_logged_or_written(model_settings, serving, customers, tmp_path):
    invalid_rows = customers.assign(age=customers["age"].where(customers.index != 7, 300))
    invalid_rows.to_csv(tmp_path / "in.csv", index=False)
    (tmp_path / "out.csv").write_text("earlier results")
    with session(model_settings, "reader") as connection:
        count_query = text("SELECT COUNT(*) FROM prediction_log WHERE model = :model")
        rows_before = connection.scalar(count_query, {"model": MODEL})
    with pytest.raises(RowsRefused, match="1 of 300 rows refused and nothing was scored; first: line 9, age = '300"):
        score_file(tmp_path / "in.csv", model_settings, serving, out=tmp_path / "out.csv")
    with session(model_settings, "reader") as connection:
        assert connection.scalar(count_query, {"model": MODEL}) == rows_before
    assert (tmp_path / "out.csv").read_text() == "earlier results"
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv"}


def test_missing_columns_and_wrong_file_names_are_errors(model_settings, serving, customers, tmp_path):
    customers.drop(columns="age").to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(MissingColumns, match="age"):
        score_file(tmp_path / "in.csv", model_settings, serving)
    with pytest.raises(NotFound, match=r"file .*none\.csv"):
        score_file(tmp_path / "none.csv", model_settings, serving)
    customers.to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(DataRefused, match=r"\.csv or \.parquet"):
        score_file(tmp_path / "in.csv", model_settings, serving, out=tmp_path / "out.xlsx")
    with pytest.raises(NotFound, match="folder"):
        score_file(tmp_path / "in.csv", model_settings, serving, out=tmp_path / "none" / "out.csv")


def test_the_rows_of_a_query_are_scored_like_the_rows_of_a_file(model_settings, serving, customers, tmp_path):
    customers.to_csv(tmp_path / "in.csv", index=False)
    load_file(
        tmp_path / "in.csv",
        spec=serving.bundle.spec,
        settings=model_settings,
        caused_by="t",
        now=NOW + timedelta(hours=1),
    )
    query = f"SELECT * FROM {MODEL}_latest WHERE entity_id LIKE 'CUS%' AND event_time < '2026-12-01 00:00:00'"
    source = query_source(query, spec=serving.bundle.spec, settings=model_settings)
    query_batch = score_source(
        source, serving=serving, settings=model_settings, now=NOW, out=tmp_path / "query.parquet"
    )
    score_file(tmp_path / "in.csv", model_settings, serving, out=tmp_path / "file.parquet")
    assert query_batch.rows == ROWS
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
def test_an_invalid_query_is_an_error(model_settings, serving, query, error, message):
    with pytest.raises(error, match=message):
        query_source(query, spec=serving.bundle.spec, settings=model_settings)


def test_a_table_has_the_same_rows_as_a_file_and_each_batch_adds_its_rows(model_settings, serving, customers, tmp_path):
    customers.to_csv(tmp_path / "in.csv", index=False)
    first_batch = score_file(
        tmp_path / "in.csv", model_settings, serving, out=tmp_path / "out.parquet", table="two_batches"
    )
    assert first_batch.table == "evergreen_results.two_batches"
    table_rows = read_results(model_settings, "two_batches")
    assert set(table_rows["batch_id"]) == {str(first_batch.batch)}
    assert set(table_rows["prediction_id"]) == set(read_log(model_settings, first_batch.batch))
    file_rows = pd.read_parquet(tmp_path / "out.parquet").sort_values("customer_id").reset_index(drop=True)
    assert [*file_rows.columns, "batch_id"] == list(table_rows.columns)
    pd.testing.assert_frame_equal(table_rows.drop(columns="batch_id"), file_rows, check_dtype=False)

    customers.drop(columns="date").to_csv(tmp_path / "in.csv", index=False)
    second_batch = score_file(tmp_path / "in.csv", model_settings, serving, table="two_batches")
    table_rows = read_results(model_settings, "two_batches")
    assert len(table_rows) == 2 * ROWS
    new_rows = table_rows[table_rows["batch_id"] == str(second_batch.batch)]
    assert len(new_rows) == ROWS
    assert new_rows["date"].isna().all()


def test_a_table_gets_no_row_of_a_batch_that_fails(model_settings, serving, customers, tmp_path):
    customers.assign(age=customers["age"].where(customers.index != 7, 300)).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(RowsRefused, match="nothing was scored"):
        score_file(tmp_path / "in.csv", model_settings, serving, table="wrong_rows")
    assert read_results(model_settings, "wrong_rows") is None

    spec = serving.bundle.spec
    first_chunk = pa.Table.from_pandas(customers[: ROWS // 2], preserve_index=False)

    def failing_read(names):
        passes.append(names)
        yield from numbered([first_chunk.select(names)])
        if len(passes) > 1:  # the first pass only checks the rows
            raise DataRefused("the disk is gone")

    passes = []
    source = Source.of("breaking", first_chunk.column_names, failing_read, spec=spec)
    with pytest.raises(DataRefused, match="the disk is gone"):
        score_source(source, serving=serving, settings=model_settings, now=NOW, table="failed_batch")
    assert len(read_results(model_settings, "failed_batch")) == 0


def test_a_table_with_other_content_or_an_invalid_name_is_rejected_before_rows_are_logged(
    model_settings, serving, customers, tmp_path
):
    customers.to_csv(tmp_path / "in.csv", index=False)
    with session(model_settings, "admin", RESULTS_DB) as connection:
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
        with pytest.raises(DataRefused, match=message) as error:
            score_file(tmp_path / "in.csv", model_settings, serving, table=name)
        assert "\n" not in str(error.value)
    with session(model_settings, "reader") as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM prediction_log")) == rows_before


def test_giving_both_a_file_and_a_query_or_neither_is_an_error(model_settings):
    no_source: dict[str, Any] = {}
    for arguments in (no_source, {"file": Path("in.csv"), "query": "SELECT 1"}):
        with pytest.raises(DataRefused, match="either a file or a query"):
            score_rows(model_settings, MODEL, now=NOW, **arguments)


def test_a_model_without_a_deployment_has_no_version_to_score_with(model_settings):
    with pytest.raises(NotFound, match="evergreen train never_deployed"):
        load_serving_version(model_settings, "never_deployed")


def test_the_command_prints_its_report_or_one_line_with_the_error(model_settings, customers, tmp_path):
    customers.to_csv(tmp_path / "in.csv", index=False)
    environment = settings_environment(model_settings, secrets=("db_reader_password", "db_pipeline_password"))
    run = partial(evergreen, "score", MODEL, environment={**os.environ, **environment}, cwd=tmp_path)
    run_into_table = partial(run, "in.csv", "--out", "out.csv", "--table")
    process = run_into_table("printed")
    assert process.returncode == 0, process.stderr
    assert "300 rows scored by version 1" in process.stdout
    report = json.loads(run_into_table("printed", "--json").stdout)
    assert (report["rows"], report["version"], report["out"]) == (300, 1, "out.csv")
    assert (
        f"evergreen_results.printed where batch_id = '{read_results(model_settings, 'printed')['batch_id'][0]}'"
        in process.stdout
    )
    assert len(read_log(model_settings, report["batch"])) == 300
    assert len(read_results(model_settings, "printed")) == 600
    wrong_name = run_into_table("no-name")
    assert wrong_name.returncode == DataRefused.exit_code
    assert len(wrong_name.stderr.strip().splitlines()) == 1
    without_source = run()
    assert without_source.returncode == 2
    assert "either a file or --query" in without_source.stderr
