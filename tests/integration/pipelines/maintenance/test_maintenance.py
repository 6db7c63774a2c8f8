"""The duties that must know what is still needed, with a real MLflow: months, snapshots, versions; and what is said."""

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
from pipelines.runs.extract import extract, window
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
    """A model with a row of features and labels each tenth of a month, from January to November 2026."""

    spec: ModelSpec
    settings: Settings

    def job(self, **more: bool) -> Job:
        return Job(self.settings, NOW, "test", **more)

    def months(self) -> tuple[str, str]:
        """The oldest month that features and labels still have a partition for."""
        with session(self.settings, "reader", STORE_DB) as connection:
            features, labels = (cuts(connection, table)[0].name for table in store_partitions(self.spec.store))
        return features, labels

    def train(self, version: int, *, window_end: datetime, at: datetime, verdict: str = "promote") -> str:
        """A training as far as its snapshot, which is real, and rows that say what came of it; returns its snapshot."""
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
            done = {"deployment_run_id": "d", "claimed_at": at, "promoted_version": version}
            history.add(connection, promotion_decision, row | (done if verdict == "promote" else {}))
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
def made(settings: Settings, tmp_path: Path) -> Store:
    name = f"kept_{secrets.token_hex(4)}"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **MODEL}))
    own = settings.model_copy(update={"models_dir": tmp_path / "models", "home": tmp_path})
    spec = find_spec(tmp_path / "models", name)
    bootstrap.migrate(own, [spec.store], today=date(2026, 6, 1))
    times = [datetime(2026, month, day) for month in range(1, 12) for day in (1, 11)]
    load(own, spec.store, [feature("e", t, 1.0) for t in times], [label("e", t, "yes") for t in times], now=NOW)
    with session(own, "admin", STORE_DB) as connection:  # migrate made 18 months before: keep the test's own year
        for table in store_partitions(spec.store):
            for cut in cuts(connection, table):
                if cut.before < datetime(2026, 1, 1):
                    connection.execute(text(f"ALTER TABLE {table.name} DROP PARTITION {cut.name}"))
    return Store(spec, own)


def test_months_go_that_no_label_of_a_training_can_need_any_more(made: Store) -> None:
    """100 days before 20 November are 12 August; features serve labels up to 40 days younger: 3 July."""
    dry = DUTIES["features"](made.job(dry_run=True))
    assert made.months() == ("p202512", "p202512")
    assert DUTIES["features"](made.job()) == dry
    assert made.months() == ("p202607", "p202608")
    assert DUTIES["features"](made.job()) == f"{made.spec.name}: nothing is older than it may be"
    run_id = f"{made.spec.name}/after"
    training_runs.record_decision(
        made.settings, model=made.spec.name, cause="manual", reason="t", caused_by=run_id, now=NOW
    )
    run = training_runs.claim(made.settings, spec=made.spec, run_id=run_id, now=NOW, window_end=NOW)
    assert window(run)[0] == NOW - 100 * DAY  # "all" is what is kept, whether the rest has gone yet or not
    manifest = extract(run, settings=made.settings, now=NOW)
    assert not read_snapshot(manifest.snapshot_id, settings=made.settings).frame["amount"].isna().any()


def test_months_that_a_champion_was_trained_on_stay_until_its_snapshot_file_is_whole(made: Store) -> None:
    first = made.train(1, window_end=datetime(2026, 6, 20), at=datetime(2026, 6, 20))
    made.train(2, window_end=datetime(2026, 11, 15), at=datetime(2026, 11, 15))
    made.deploy(1, previous=None, at=datetime(2026, 6, 21))
    made.deploy(2, previous=1, at=datetime(2026, 11, 16))
    file = made.settings.snapshots / f"{first}.parquet"
    whole = file.read_bytes()
    for problem, damage in (("there is no file", file.unlink), ("was changed or damaged", None)):
        if damage:
            damage()
        else:
            shutil.copy(next(each for each in made.settings.snapshots.glob("*.parquet") if each != file), file)
        said = DUTIES["features"](made.job())
        assert "held back: version 1 was trained on them" in said
        assert problem in said
        assert made.months() == ("p202601", "p202603")  # its labels go back to 12 March, their features to 31 January
    file.write_bytes(whole)
    assert "held back" not in DUTIES["features"](made.job())
    assert made.months() == ("p202607", "p202608")
    with session(made.settings, "reader") as connection:
        rows = connection.execute(
            text("SELECT table_name, MAX(dropped_before) AS until FROM retention WHERE model = :m GROUP BY 1"),
            {"m": made.spec.name},
        )
        assert {row.table_name: row.until for row in rows} == {
            made.spec.store.features_table: datetime(2026, 7, 1),
            made.spec.store.labels_table: datetime(2026, 8, 1),
        }


def test_nothing_goes_for_a_version_whose_training_is_not_known_or_while_a_training_reads(made: Store) -> None:
    made.deploy(7, previous=None, at=NOW)
    assert "which rows version 7 was trained on is not known here" in DUTIES["features"](made.job())
    made.train(8, window_end=NOW, at=NOW)
    made.deploy(8, previous=None, at=NOW)
    reading = f"{made.spec.name}/9"
    training_runs.record_decision(
        made.settings, model=made.spec.name, cause="manual", reason="t", caused_by=reading, now=NOW
    )
    training_runs.claim(made.settings, spec=made.spec, run_id=reading, now=NOW, window_end=datetime(2026, 5, 1))
    assert f"training {reading} is reading" in DUTIES["features"](made.job())
    assert made.months() == ("p202512", "p202601")  # 40 and 140 days before 1 May: what that training reads stays
    assert "held back" in DUTIES["features"](made.job())


def test_files_of_snapshots_that_nothing_came_of_go_and_their_rows_stay(made: Store) -> None:
    old = datetime(2026, 9, 1)
    ids = {n: made.train(n, window_end=datetime(2026, 7, n), at=old) for n in (1, 2)}
    ids[3] = made.train(3, window_end=datetime(2026, 7, 3), at=old, verdict="reject")
    ids[4] = made.train(4, window_end=datetime(2026, 7, 4), at=NOW - 5 * DAY, verdict="reject")
    made.deploy(1, previous=None, at=old)
    made.deploy(2, previous=1, at=old + DAY)
    stray, fresh = made.settings.snapshots / ".half.parquet", made.settings.snapshots / ".now.parquet"
    for file in (stray, fresh):
        file.write_bytes(b"half")
    os.utime(stray, (time.time() - 2 * 86_400,) * 2)
    before = set(made.settings.snapshots.iterdir())
    assert "3 files deleted" in DUTIES["snapshots"](made.job(dry_run=True))
    assert set(made.settings.snapshots.iterdir()) == before
    assert "3 files deleted" in DUTIES["snapshots"](made.job())
    left = {file.name for file in made.settings.snapshots.iterdir()}
    assert left == {".now.parquet", *(f"{ids[n]}{end}" for n in (1, 2, 4) for end in (".parquet", ".json"))}
    with session(made.settings, "reader") as connection:
        assert trainings.find_snapshot(connection, ids[3]) is not None


def test_refused_versions_leave_mlflow_after_a_month_and_what_served_never(
    made: Store, mlflow_settings: Settings, tmp_path: Path
) -> None:
    own = made.settings.model_copy(update={"mlflow_port": mlflow_settings.mlflow_port})
    store, name = Store(made.spec, own), made.spec.name
    write_bundle(made.spec, tmp_path / "bundle")
    mlflow = registry.client(own)
    run = mlflow.create_run(mlflow.create_experiment(name)).info.run_id
    old, verdicts = datetime(2026, 9, 1), ["promote", "reject", "wait", "reject", "reject", "reject"]
    for version, verdict in enumerate(verdicts, start=1):
        tags = {"run_id": f"t/{version}"}
        registry.register(own, model=name, mlflow_run_id=run, folder=tmp_path / "bundle", tags=tags, description="")
        at = NOW - DAY if version == 5 else old + version * DAY
        store.train(version, window_end=datetime(2026, 8, 1), at=at, verdict=verdict)
    store.deploy(1, previous=None, at=old)
    store.deploy(4, previous=1, at=old + DAY)  # by hand, although it was refused
    store.deploy(1, previous=4, at=old + 2 * DAY)
    registry.set_alias(own, name, "mine", 6)
    source = mlflow.get_model_version(name, "2").source
    location = mlflow.get_logged_model(str(source).removeprefix("models:/")).artifact_location
    assert DUTIES["artifacts"](store.job(dry_run=True)) == f"{name}: 2 versions deleted, 2 to 3"
    assert registry.version_tags(own, name, 2)
    assert DUTIES["artifacts"](store.job()) == f"{name}: 2 versions deleted, 2 to 3"
    assert DUTIES["artifacts"](store.job()) == "no refused version is a month old"
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    assert get_artifact_repository(location, tracking_uri=own.mlflow_tracking_url).list_artifacts() == []
    for gone in (2, 3):
        with pytest.raises(NotFound):
            registry.version_tags(own, name, gone)
    for kept in (1, 4, 5, 6):
        registry.download(own, name, kept, tmp_path / f"v{kept}")
    again = registry.register(own, model=name, mlflow_run_id=run, folder=tmp_path / "bundle", tags={}, description="")
    assert again == 7


def test_the_command_does_every_duty_and_says_what_came_of_each(
    made: Store, mlflow_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for field in ("home", "models_dir", "mariadb_port", "db_pipeline_password", "db_maintenance_password"):
        value = getattr(made.settings, field)
        shown = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        monkeypatch.setenv(f"EVERGREEN_{field.upper()}", shown)
    monkeypatch.setenv("EVERGREEN_ENV_FILE", "/dev/null")
    monkeypatch.setenv("EVERGREEN_MLFLOW_PORT", str(mlflow_settings.mlflow_port))
    every = CliRunner().invoke(app, ["maintain", "--dry-run", "--json"])
    assert every.exit_code == 0, every
    dry = json.loads(every.stdout)
    assert [row["duty"] for row in dry] == list(DUTIES)
    done = CliRunner().invoke(app, ["maintain", "features", "--json"])
    (row,) = json.loads(done.stdout)
    assert row["failed"] is False
    assert row["done"].startswith(f"{made.spec.store.labels_table}:")
    monkeypatch.setenv("EVERGREEN_DB_MAINTENANCE_PASSWORD", "")
    failed = CliRunner().invoke(app, ["maintain", "batches", "predictions", "--json"])
    assert failed.exit_code == 1
    assert [row["failed"] for row in json.loads(failed.stdout)] == [True, False]
