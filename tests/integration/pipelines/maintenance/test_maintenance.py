"""Maintenance duties that must keep needed data: months of the store, snapshots, and versions in a real MLflow."""

import json
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import text
from typer.testing import CliRunner

from cli.main import app
from db import history
from db.admin import bootstrap
from db.admin.retention import cuts, store_partitions
from db.history import trainings
from db.session import session
from db.tables import deployment, promotion_decision
from pipelines import registry
from pipelines.maintenance.duties import DUTIES, Job
from pipelines.runs import training_runs
from pipelines.runs.extract import extract, look_back_bounds
from pipelines.runs.snapshot import read_snapshot
from pipelines.spec import ModelSpec, find_spec
from tests.bundles import write_bundle
from tests.integration.db.store.test_store import feature, label, load
from utils.errors import NotFound
from utils.settings import STORE_DB, Settings

DAY = timedelta(days=1)
NOW = datetime(2026, 11, 20)
MODEL = {
    "task": "binary",
    "entity": "customer",
    "source": {"event_time": "day"},
    "label": {"column": "outcome", "classes": ["no", "yes"]},
    "features": {
        "max_age": "40d",
        "columns": {"amount": {"type": "numeric"}, "kind": {"type": "categorical"}, "note": {"type": "text"}},
    },
    "keep": "100d",
}


@dataclass(frozen=True, slots=True)
class Store:
    """A model with feature and label rows on days 1 and 11 of each month, from January to November 2026."""

    spec: ModelSpec
    settings: Settings

    def job(self, **options: bool) -> Job:
        return Job(self.settings, NOW, "test", **options)

    def oldest_months(self) -> tuple[str, str]:
        """Return the names of the oldest partitions of the features and of the labels."""
        with session(self.settings, "reader", STORE_DB) as connection:
            features, labels = (cuts(connection, table)[0].name for table in store_partitions(self.spec.store))
        return features, labels

    def train(self, version: int, *, window_end: datetime, at: datetime, verdict: str = "promote") -> str:
        """Make a real snapshot, and add the rows of a finished training with a verdict. Return the snapshot's id."""
        run_id = f"{self.spec.name}/{version}"
        training_runs.record_decision(
            self.settings, model=self.spec.name, cause="manual", reason="test", caused_by=run_id, now=at
        )
        run = training_runs.claim(self.settings, spec=self.spec, run_id=run_id, now=at, window_end=window_end)
        extract(run, settings=self.settings, now=at)
        with session(self.settings, "pipeline") as connection:
            trainings.update_run(connection, run_id, state="finished", candidate_version=version)
            row = {
                "model": self.spec.name,
                "candidate_version": version,
                "verdict": verdict,
                "reason": "t",
                "gates": {},
                "run_id": run_id,
                "decided_at": at,
            }
            promotion = {"deployment_run_id": "d", "claimed_at": at, "promoted_version": version}
            history.add(connection, promotion_decision, row | (promotion if verdict == "promote" else {}))
        return str(training_runs.load_run(self.settings, run_id).snapshot_id)

    def deploy(self, version: int, *, previous: int | None, at: datetime) -> None:
        row = {
            "model": self.spec.name,
            "action": "deploy",
            "version": version,
            "previous_version": previous,
            "artifact_sha256": "x",
            "caused_by": "t",
            "reason": "t",
            "created_at": at,
        }
        with session(self.settings, "pipeline") as connection:
            history.add(connection, deployment, row)


@pytest.fixture
def model_store(settings: Settings, tmp_path: Path) -> Store:
    name = f"kept_{secrets.token_hex(4)}"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **MODEL}))
    own_settings = settings.model_copy(update={"models_dir": tmp_path / "models", "home": tmp_path})
    spec = find_spec(tmp_path / "models", name)
    bootstrap.migrate(own_settings, [spec.store], today=date(2026, 6, 1))
    times = [datetime(2026, month, day) for month in range(1, 12) for day in (1, 11)]
    load(
        own_settings, spec.store, [feature("e", t, 1.0) for t in times], [label("e", t, "yes") for t in times], now=NOW
    )
    with session(own_settings, "admin", STORE_DB) as connection:  # drop the earlier months that `migrate` created
        for table in store_partitions(spec.store):
            for cut in cuts(connection, table):
                if cut.before < datetime(2026, 1, 1):
                    connection.execute(text(f"ALTER TABLE {table.name} DROP PARTITION {cut.name}"))
    return Store(spec, own_settings)


def test_months_that_no_training_can_need_any_more_are_dropped(model_store: Store) -> None:
    """Labels stay from 12 August on (100 days). Features serve labels for 40 days, so they stay from 3 July on."""
    dry_run_line = DUTIES["features"](model_store.job(dry_run=True))
    assert model_store.oldest_months() == ("p202512", "p202512")
    assert DUTIES["features"](model_store.job()) == dry_run_line
    assert model_store.oldest_months() == ("p202607", "p202608")
    assert DUTIES["features"](model_store.job()) == f"{model_store.spec.name}: nothing is older than it may be"
    run_id = f"{model_store.spec.name}/after"
    training_runs.record_decision(
        model_store.settings, model=model_store.spec.name, cause="manual", reason="t", caused_by=run_id, now=NOW
    )
    run = training_runs.claim(model_store.settings, spec=model_store.spec, run_id=run_id, now=NOW, window_end=NOW)
    # Without a look-back, a training reads all rows within `keep`, even if older rows are not dropped yet.
    assert look_back_bounds(run)[0] == NOW - 100 * DAY
    manifest = extract(run, settings=model_store.settings, now=NOW)
    assert not read_snapshot(manifest.snapshot_id, settings=model_store.settings).frame["amount"].isna().any()


def test_months_that_a_champion_was_trained_on_stay_while_its_snapshot_file_is_missing_or_damaged(
    model_store: Store,
) -> None:
    snapshot_id = model_store.train(1, window_end=datetime(2026, 6, 20), at=datetime(2026, 6, 20))
    model_store.train(2, window_end=datetime(2026, 11, 15), at=datetime(2026, 11, 15))
    model_store.deploy(1, previous=None, at=datetime(2026, 6, 21))
    model_store.deploy(2, previous=1, at=datetime(2026, 11, 16))
    file = model_store.settings.snapshots / f"{snapshot_id}.parquet"
    intact_content = file.read_bytes()
    other_file = next(path for path in model_store.settings.snapshots.glob("*.parquet") if path != file)
    for problem, damage in (
        ("there is no file", file.unlink),
        ("was changed or damaged", lambda: shutil.copy(other_file, file)),
    ):
        damage()
        message = DUTIES["features"](model_store.job())
        assert "held back: version 1 was trained on them" in message
        assert problem in message
        # The labels of version 1 begin on 12 March. Their features begin on 31 January.
        assert model_store.oldest_months() == ("p202601", "p202603")
    file.write_bytes(intact_content)
    assert "held back" not in DUTIES["features"](model_store.job())
    assert model_store.oldest_months() == ("p202607", "p202608")
    with session(model_store.settings, "reader") as connection:
        rows = connection.execute(
            text("SELECT table_name, MAX(dropped_before) AS until FROM retention WHERE model = :m GROUP BY 1"),
            {"m": model_store.spec.name},
        )
        assert {row.table_name: row.until for row in rows} == {
            model_store.spec.store.features_table: datetime(2026, 7, 1),
            model_store.spec.store.labels_table: datetime(2026, 8, 1),
        }


def test_months_of_an_unknown_training_and_of_a_running_training_stay(model_store: Store) -> None:
    model_store.deploy(7, previous=None, at=NOW)
    assert "which rows version 7 was trained on is not known here" in DUTIES["features"](model_store.job())
    model_store.train(8, window_end=NOW, at=NOW)
    model_store.deploy(8, previous=None, at=NOW)
    reading_run = f"{model_store.spec.name}/9"
    training_runs.record_decision(
        model_store.settings, model=model_store.spec.name, cause="manual", reason="t", caused_by=reading_run, now=NOW
    )
    training_runs.claim(
        model_store.settings, spec=model_store.spec, run_id=reading_run, now=NOW, window_end=datetime(2026, 5, 1)
    )
    assert f"training {reading_run} is reading" in DUTIES["features"](model_store.job())
    # The running training reads labels from 100 days before 1 May on, and features from 140 days before it on.
    assert model_store.oldest_months() == ("p202512", "p202601")
    assert "held back" in DUTIES["features"](model_store.job())


def test_files_of_unused_snapshots_are_deleted_and_their_rows_stay(model_store: Store) -> None:
    old_time = datetime(2026, 9, 1)
    snapshot_ids = {n: model_store.train(n, window_end=datetime(2026, 7, n), at=old_time) for n in (1, 2)}
    snapshot_ids[3] = model_store.train(3, window_end=datetime(2026, 7, 3), at=old_time, verdict="reject")
    snapshot_ids[4] = model_store.train(4, window_end=datetime(2026, 7, 4), at=NOW - 5 * DAY, verdict="reject")
    model_store.deploy(1, previous=None, at=old_time)
    model_store.deploy(2, previous=1, at=old_time + DAY)
    old_unrecorded, new_unrecorded = (
        model_store.settings.snapshots / ".half.parquet",
        model_store.settings.snapshots / ".now.parquet",
    )
    for file in (old_unrecorded, new_unrecorded):
        file.write_bytes(b"half")
    os.utime(old_unrecorded, (time.time() - 2 * 86_400,) * 2)
    files_before = set(model_store.settings.snapshots.iterdir())
    assert "3 files deleted" in DUTIES["snapshots"](model_store.job(dry_run=True))
    assert set(model_store.settings.snapshots.iterdir()) == files_before
    assert "3 files deleted" in DUTIES["snapshots"](model_store.job())
    remaining = {file.name for file in model_store.settings.snapshots.iterdir()}
    assert remaining == {
        ".now.parquet",
        *(f"{snapshot_ids[n]}{end}" for n in (1, 2, 4) for end in (".parquet", ".json")),
    }
    with session(model_store.settings, "reader") as connection:
        assert trainings.find_snapshot(connection, snapshot_ids[3]) is not None


def test_versions_are_deleted_a_month_after_their_rejection_unless_they_served_or_have_an_alias(
    model_store: Store, mlflow_settings: Settings, tmp_path: Path
) -> None:
    own_settings = model_store.settings.model_copy(update={"mlflow_port": mlflow_settings.mlflow_port})
    store, name = Store(model_store.spec, own_settings), model_store.spec.name
    write_bundle(model_store.spec, tmp_path / "bundle")
    mlflow = registry.client(own_settings)
    run = mlflow.create_run(mlflow.create_experiment(name)).info.run_id
    old_time, verdicts = datetime(2026, 9, 1), ["promote", "reject", "wait", "reject", "reject", "reject"]
    for version, verdict in enumerate(verdicts, start=1):
        tags = {"run_id": f"t/{version}"}
        registry.register(
            own_settings, model=name, mlflow_run_id=run, folder=tmp_path / "bundle", tags=tags, description=""
        )
        at = NOW - DAY if version == 5 else old_time + version * DAY
        store.train(version, window_end=datetime(2026, 8, 1), at=at, verdict=verdict)
    store.deploy(1, previous=None, at=old_time)
    store.deploy(4, previous=1, at=old_time + DAY)  # a person deployed it although it was rejected
    store.deploy(1, previous=4, at=old_time + 2 * DAY)
    registry.set_alias(own_settings, name, "mine", 6)
    source = mlflow.get_model_version(name, "2").source
    artifact_location = mlflow.get_logged_model(str(source).removeprefix("models:/")).artifact_location
    assert DUTIES["artifacts"](store.job(dry_run=True)) == f"{name}: 2 versions deleted, 2 to 3"
    assert registry.version_tags(own_settings, name, 2)
    assert DUTIES["artifacts"](store.job()) == f"{name}: 2 versions deleted, 2 to 3"
    assert DUTIES["artifacts"](store.job()) == "no refused version is a month old"
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    assert (
        get_artifact_repository(artifact_location, tracking_uri=own_settings.mlflow_tracking_url).list_artifacts() == []
    )
    for deleted_version in (2, 3):
        with pytest.raises(NotFound):
            registry.version_tags(own_settings, name, deleted_version)
    for kept_version in (1, 4, 5, 6):
        registry.download(own_settings, name, kept_version, tmp_path / f"v{kept_version}")
    new_version = registry.register(
        own_settings, model=name, mlflow_run_id=run, folder=tmp_path / "bundle", tags={}, description=""
    )
    assert new_version == 7


def test_the_command_runs_every_duty_and_reports_each_result(
    model_store: Store, mlflow_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for field in ("home", "models_dir", "mariadb_port", "db_pipeline_password", "db_maintenance_password"):
        value = getattr(model_store.settings, field)
        text_value = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        monkeypatch.setenv(f"EVERGREEN_{field.upper()}", text_value)
    monkeypatch.setenv("EVERGREEN_ENV_FILE", "/dev/null")
    monkeypatch.setenv("EVERGREEN_MLFLOW_PORT", str(mlflow_settings.mlflow_port))
    all_duties = CliRunner().invoke(app, ["maintain", "--dry-run", "--json"])
    assert all_duties.exit_code == 0, all_duties
    report = json.loads(all_duties.stdout)
    assert [row["duty"] for row in report] == list(DUTIES)
    one_duty = CliRunner().invoke(app, ["maintain", "features", "--json"])
    (row,) = json.loads(one_duty.stdout)
    assert row["failed"] is False
    assert row["done"].startswith(f"{model_store.spec.store.labels_table}:")
    monkeypatch.setenv("EVERGREEN_DB_MAINTENANCE_PASSWORD", "")
    without_password = CliRunner().invoke(app, ["maintain", "batches", "predictions", "--json"])
    assert without_password.exit_code == 1
    assert [row["failed"] for row in json.loads(without_password.stdout)] == [True, False]
