"""Trainings on wrong data: the error, the stored report, and what stays unchanged. With a real MariaDB and MLflow."""

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
FIRST = datetime(2026, 8, 1)
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
    """A model with a serving version. Its first training, up to `FIRST`, has finished."""

    spec: ModelSpec
    settings: Settings
    folder: Path
    version: int

    def load(self, *, after: datetime, until: datetime, **columns: object) -> None:
        """Load four orders an hour between the two times. `columns` replace valid columns."""
        times = pd.date_range(after, until, freq="15min", inclusive="right")
        draw = np.random.default_rng(7)
        valid = {
            "order_no": [f"A-{time:%m%d%H%M}" for time in times],
            "at": times,
            "outcome": draw.choice(["on time", "late"], len(times)),
            "km": draw.exponential(6, len(times)).round(1),
            "weather": draw.choice(["dry", "rain"], len(times)),
            "note": draw.choice(["ring twice", "leave it"], len(times)),
            "phone": [f"555-CANARY-{number}" for number in range(len(times))],
        }
        file = self.folder / f"{until:%m%d%H}.parquet"
        pd.DataFrame(valid | columns).to_parquet(file)
        load_file(file, spec=self.spec, settings=self.settings, caused_by="test", now=until + timedelta(hours=1))

    def claim(self, run_id: str, *, window_end: datetime, **policy: str) -> None:
        file = self.spec.to_json() | {"validation": policy}
        spec = ModelSpec.parse(file, file="checked_orders.yaml")
        training_runs.record_decision(
            self.settings, model=spec.name, cause="manual", reason="a test", caused_by=run_id, now=window_end
        )
        training_runs.claim(self.settings, spec=spec, run_id=run_id, now=window_end, window_end=window_end)
        training_steps.run_step("extract", run_id, settings=self.settings, now=window_end)

    def validate(self, run_id: str, *, now: datetime = FIRST) -> training_steps.StepResult:
        return training_steps.run_step("validate", run_id, settings=self.settings, now=now)

    def row(self, run_id: str) -> Any:
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
    version = put_into_service(spec, folder / "bundle", settings=mlflow_settings, now=FIRST - WEEK)
    new_orders = Orders(spec, mlflow_settings, folder, version)
    new_orders.load(after=FIRST - 4 * WEEK, until=FIRST)
    new_orders.claim("o/first", window_end=FIRST)
    new_orders.validate("o/first")
    training_runs.finish(mlflow_settings, "o/first", now=FIRST)
    return new_orders


def test_a_first_training_passes_and_its_report_is_a_row_and_two_artifacts(orders: Orders) -> None:
    row = orders.row("o/first")
    assert (row["errors"], row["warnings"], row["snapshot_id"]) == (
        0,
        0,
        training_runs.load_run(orders.settings, "o/first").snapshot_id,
    )
    assert row["report"]["compared_with"] is None
    assert row["report"]["statistics"]["columns"]["km"]["missing"] == 0
    assert json.loads(orders.artifact("o/first", "report.json")) == row["report"]
    assert "checked_orders: passed" in orders.artifact("o/first", "report.html")


def test_validating_again_writes_the_same_report_once(orders: Orders) -> None:
    report_before = orders.row("o/first")["report"]
    result = orders.validate("o/first")
    assert result.summary == "3 features and the label keep to the model file"
    assert result.url
    assert orders.row("o/first")["report"] == report_before


def test_an_error_stops_the_training_and_changes_nothing_else(orders: Orders) -> None:
    until = FIRST + WEEK
    orders.load(after=FIRST, until=until, km=[None] * 7 * 24 * 4)
    orders.claim("o/broken", window_end=until)
    with pytest.raises(ValidationFailed) as failure:
        orders.validate("o/broken", now=until)
    assert "km is missing in 100% of the 672 newest rows; in the last training it was in 0%" in str(failure.value)
    assert "checked_orders: training data breaks" in str(failure.value)
    run = training_runs.load_run(orders.settings, "o/broken")
    assert f"/#/runs/{run.mlflow_run_id}" in str(failure.value)
    row = orders.row("o/broken")
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


def test_a_failed_training_is_no_baseline_and_a_policy_lets_the_next_one_pass(orders: Orders) -> None:
    until = FIRST + WEEK
    orders.claim("o/accepted", window_end=until, null_share="warning")
    assert orders.validate("o/accepted", now=until).summary.endswith("but for 1 warning(s) in validation/report.html")
    row = orders.row("o/accepted")
    assert row["report"]["compared_with"]["run_id"] == "o/first"
    assert [(violation["rule"], violation["severity"]) for violation in row["report"]["violations"]] == [
        ("null_share", "warning")
    ]
    training_runs.finish(orders.settings, "o/accepted", now=until)

    later = until + WEEK
    orders.load(after=until, until=later, km=[None] * 7 * 24 * 4)
    orders.claim("o/next", window_end=later)
    with pytest.raises(ValidationFailed, match="km is missing in 100%"):
        orders.validate("o/next", now=later)
    training_steps.give_up("o/next", settings=orders.settings, now=later)


def test_stale_features_are_reported_although_labels_still_arrive(orders: Orders) -> None:
    start, until = FIRST + 2 * WEEK, FIRST + 4 * WEEK
    file = orders.folder / "labels.csv"
    times = pd.date_range(start, until, freq="1h", inclusive="right")
    labels = pd.DataFrame(
        {
            "order_no": [f"A-{t:%m%d%H%M}" for t in times],
            "at": times,
            "outcome": ["late", "on time"] * (len(times) // 2),
        }
    )
    labels.to_csv(file, index=False)
    load_file(file, spec=orders.spec, settings=orders.settings, caused_by="test", now=until)
    orders.claim("o/stale", window_end=until, null_share="warning")
    orders.validate("o/stale", now=until)
    sentences = [
        violation["said"]
        for violation in orders.row("o/stale")["report"]["violations"]
        if violation["rule"] == "freshness"
    ]
    assert sentences == [
        "the newest feature row is of 2026-08-15 00:00, 14 days before it was due; otherwise they are at most 1d apart"
    ]


def test_no_report_has_a_private_value(orders: Orders) -> None:
    with session(orders.settings, "reader") as connection:
        query = select(validation_report.c.report).where(validation_report.c.model == orders.spec.name)
        reports = [json.dumps(report) for report in connection.scalars(query)]
    assert reports
    assert not [report for report in reports if "CANARY" in report or "phone" in report]
