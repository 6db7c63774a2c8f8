"""The validation step with a real MariaDB and MLflow: the errors, the reports, and the champion, which serves on."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import pandas as pd
import pytest
from sqlalchemy import select

from db.admin import bootstrap
from db.history import deployments
from db.session import session
from db.tables import retrain_decision, validation_report
from pipelines import registry
from pipelines.loading.loader import load_file
from pipelines.runs import training_runs
from pipelines.spec import ModelSpec
from pipelines.training import training_steps
from tests.integration.conftest import put_into_service
from utils.errors import ValidationFailed
from utils.settings import Settings

WEEK = timedelta(days=7)
FIRST_END = datetime(2026, 8, 1)
FILE: dict[str, Any] = {
    "name": "checked_orders",
    "task": "binary",
    "entity": "order_no",
    "source": {"event_time": "at"},
    "label": {"column": "outcome", "classes": ["on time", "late"]},
    "features": {
        "columns": {"km": {"type": "numeric", "min": 0}, "weather": {"type": "categorical"}, "note": {"type": "text"}},
        "private": ["phone"],
    },
    "training": {"split": {"by": "time", "validation": "7d", "test": "7d"}},
    "gates": {"min_rows": 100},
}


@dataclass(frozen=True, slots=True)
class Orders:
    """A model with a finished first training.

    folder: the folder for the files that are loaded.
    version: the version that serves.
    """

    spec: ModelSpec
    settings: Settings
    folder: Path
    version: int

    def load(self, *, after: datetime, until: datetime, **columns: object) -> None:
        """Load four orders per hour between the two times. `columns` replace valid columns."""
        times = pd.date_range(after, until, freq="15min", inclusive="right")
        random = np.random.default_rng(7)
        valid_columns = {
            "order_no": [f"A-{time:%m%d%H%M}" for time in times],
            "at": times,
            "outcome": random.choice(["on time", "late"], len(times)),
            "km": random.exponential(6, len(times)).round(1),
            "weather": random.choice(["dry", "rain"], len(times)),
            "note": random.choice(["ring twice", "leave it"], len(times)),
            "phone": [f"555-CANARY-{number}" for number in range(len(times))],
        }
        file = self.folder / f"{until:%m%d%H}.parquet"
        pd.DataFrame(valid_columns | columns).to_parquet(file)
        load_file(file, spec=self.spec, settings=self.settings, caused_by="test", now=until + timedelta(hours=1))

    def extract(self, run_id: str, *, window_end: datetime, **severities: str) -> None:
        """Begin a run and write its snapshot. `severities` are the section `validation` of the model file."""
        file = self.spec.to_json() | {"validation": severities}
        spec = ModelSpec.parse(file, file="checked_orders.yaml")
        training_runs.record_decision(
            self.settings, model=spec.name, cause="manual", reason="a test", caused_by=run_id, now=window_end
        )
        training_runs.claim(self.settings, spec=spec, run_id=run_id, now=window_end, window_end=window_end)
        training_steps.run_step("extract", run_id, settings=self.settings, now=window_end)

    def validate(self, run_id: str, *, now: datetime = FIRST_END) -> training_steps.StepResult:
        return training_steps.run_step("validate", run_id, settings=self.settings, now=now)

    def report_row(self, run_id: str) -> Any:
        with session(self.settings, "reader") as connection:
            query = select(validation_report).where(validation_report.c.run_id == run_id)
            return connection.execute(query).mappings().one()

    def artifact(self, run_id: str, name: str) -> str:
        path = mlflow.artifacts.download_artifacts(
            run_id=training_runs.load_run(self.settings, run_id).mlflow_run_id,
            artifact_path=f"validation/{name}",
            tracking_uri=self.settings.mlflow_tracking_url,
        )
        return Path(path).read_text()


@pytest.fixture(scope="module")
def orders(mlflow_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Orders:
    spec = ModelSpec.parse(FILE, file="checked_orders.yaml")
    bootstrap.migrate(mlflow_settings, [spec.store])
    folder = tmp_path_factory.mktemp("orders")
    version = put_into_service(spec, folder / "bundle", settings=mlflow_settings, now=FIRST_END - WEEK)
    new_orders = Orders(spec, mlflow_settings, folder, version)
    new_orders.load(after=FIRST_END - 4 * WEEK, until=FIRST_END)
    new_orders.extract("o/first", window_end=FIRST_END)
    new_orders.validate("o/first")
    training_runs.finish(mlflow_settings, "o/first", now=FIRST_END)
    return new_orders


def test_the_report_of_a_first_training_is_a_row_and_two_artifacts(orders: Orders) -> None:
    row = orders.report_row("o/first")
    assert (row["errors"], row["warnings"], row["snapshot_id"]) == (
        0,
        0,
        training_runs.load_run(orders.settings, "o/first").snapshot_id,
    )
    assert row["report"]["compared_with"] is None
    assert row["report"]["statistics"]["columns"]["km"]["missing"] == 0
    assert json.loads(orders.artifact("o/first", "report.json")) == row["report"]
    assert "checked_orders: passed" in orders.artifact("o/first", "report.html")


def test_a_second_validation_writes_the_same_report(orders: Orders) -> None:
    report_before = orders.report_row("o/first")["report"]
    result = orders.validate("o/first")
    assert result.summary == "3 features and the label keep to the model file"
    assert result.url
    assert orders.report_row("o/first")["report"] == report_before


def test_an_error_stops_the_training_and_the_champion_serves_on(orders: Orders) -> None:
    until = FIRST_END + WEEK
    orders.load(after=FIRST_END, until=until, km=[None] * 7 * 24 * 4)
    orders.extract("o/broken", window_end=until)
    with pytest.raises(ValidationFailed) as failure:
        orders.validate("o/broken", now=until)
    assert "km is missing in 100% of the 672 newest rows; in the last training it was in 0%" in str(failure.value)
    assert "checked_orders: training data breaks" in str(failure.value)
    run = training_runs.load_run(orders.settings, "o/broken")
    assert f"/#/runs/{run.mlflow_run_id}" in str(failure.value)
    row = orders.report_row("o/broken")
    assert row["errors"] == len(failure.value.violations) == row["report"]["errors"]
    assert row["report"]["compared_with"]["run_id"] == "o/first"
    assert json.loads(orders.artifact("o/broken", "report.json")) == row["report"]
    assert "<b>km</b> is missing in 100%" in orders.artifact("o/broken", "report.html")

    training_steps.give_up("o/broken", settings=orders.settings, now=until)
    with session(orders.settings, "reader") as connection:
        query = select(retrain_decision.c.run_id).where(retrain_decision.c.caused_by == "o/broken")
        assert connection.execute(query).scalar_one() is None
        champion = deployments.champion(connection, orders.spec.name)
    assert champion is not None
    assert champion["version"] == orders.version
    assert run.mlflow_run_id is not None
    assert registry.client(orders.settings).get_run(run.mlflow_run_id).info.status == "FAILED"


def test_a_training_is_compared_with_the_last_finished_training(orders: Orders) -> None:
    until = FIRST_END + WEEK
    orders.extract("o/accepted", window_end=until, null_share="warning")
    assert orders.validate("o/accepted", now=until).summary.endswith("but for 1 warning(s) in validation/report.html")
    row = orders.report_row("o/accepted")
    assert row["report"]["compared_with"]["run_id"] == "o/first"
    assert [(violation["rule"], violation["severity"]) for violation in row["report"]["violations"]] == [
        ("null_share", "warning")
    ]
    training_runs.finish(orders.settings, "o/accepted", now=until)

    next_end = until + WEEK
    orders.load(after=until, until=next_end, km=[None] * 7 * 24 * 4)
    orders.extract("o/next", window_end=next_end)
    with pytest.raises(ValidationFailed, match="km is missing in 100%"):
        orders.validate("o/next", now=next_end)
    training_steps.give_up("o/next", settings=orders.settings, now=next_end)


def test_old_feature_rows_are_reported_although_labels_still_arrive(orders: Orders) -> None:
    start, until = FIRST_END + 2 * WEEK, FIRST_END + 4 * WEEK
    file = orders.folder / "labels.csv"
    times = pd.date_range(start, until, freq="1h", inclusive="right")
    labels = pd.DataFrame(
        {
            "order_no": [f"A-{time:%m%d%H%M}" for time in times],
            "at": times,
            "outcome": ["late", "on time"] * (len(times) // 2),
        }
    )
    labels.to_csv(file, index=False)
    load_file(file, spec=orders.spec, settings=orders.settings, caused_by="test", now=until)
    orders.extract("o/stale", window_end=until, null_share="warning")
    orders.validate("o/stale", now=until)
    texts = [
        violation["said"]
        for violation in orders.report_row("o/stale")["report"]["violations"]
        if violation["rule"] == "freshness"
    ]
    assert texts == [
        "the newest feature row is of 2026-08-15 00:00, 14 days before it was due; otherwise they are at most 1d apart"
    ]


def test_no_report_has_a_private_value(orders: Orders) -> None:
    with session(orders.settings, "reader") as connection:
        query = select(validation_report.c.report).where(validation_report.c.model == orders.spec.name)
        reports = [json.dumps(report) for report in connection.scalars(query)]
    assert reports
    assert not [report for report in reports if "CANARY" in report or "phone" in report]
