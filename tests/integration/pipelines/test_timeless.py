"""Data without time, from the example data to a version that serves, with a real MLflow. Binary and regression."""

import csv
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import text

from db.admin import bootstrap
from db.history import decisions
from db.session import session
from pipelines import registry
from pipelines.deployment import promote, rollout
from pipelines.loading.loader import load_file
from pipelines.runs import training_runs
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec, find_spec
from pipelines.training import training_steps
from pipelines.training.evaluate import load_evaluation
from pipelines.training.fit import newest_label
from pipelines.training.split import split_rows
from stack.example_data import worlds
from stack.example_data.load_example import load_example
from utils.errors import NothingToDo
from utils.settings import Settings
from utils.version import ROOT

NOW = datetime(2026, 9, 30)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model with a version that was trained on its example data, promoted and rolled out."""

    spec: ModelSpec
    settings: Settings
    run: Run
    version: int

    def train(self, run_id: str) -> Run:
        return train(self.spec, self.settings, run_id)


def train(spec: ModelSpec, settings: Settings, run_id: str) -> Run:
    training_runs.record_decision(settings, model=spec.name, cause="manual", reason="a test", caused_by=run_id, now=NOW)
    training_runs.claim(settings, spec=spec, run_id=run_id, now=NOW, window_end=NOW, trials=2)
    for step in training_steps.STEPS:
        training_steps.run_step(step, run_id, settings=settings, now=NOW)
    return training_runs.load_run(settings, run_id)


@pytest.fixture(scope="module", params=["churn", "insurance"])
def served_model(
    request: pytest.FixtureRequest, mlflow_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> ServedModel:
    folder = tmp_path_factory.mktemp("models")
    file = yaml.safe_load((ROOT / "models" / f"{request.param}.yaml").read_text())
    file["training"]["search"] |= {"space": {"depth": [3, 4], "learning_rate": [0.2, 0.3]}}
    (folder / f"{request.param}.yaml").write_text(yaml.safe_dump(file))
    spec = find_spec(folder, request.param)
    bootstrap.migrate(mlflow_settings, [spec.store])
    load_example(spec=spec, settings=mlflow_settings, now=NOW)
    run = train(spec, mlflow_settings, f"t/{spec.name}")
    claim = promote.claim(mlflow_settings, model=spec.name, run_id=f"d/{spec.name}", now=NOW)
    version = promote.promote(mlflow_settings, decision_id=claim["decision"])
    rollout.roll_out(mlflow_settings, model=spec.name, version=version, caused_by="d", reason="a test", now=NOW)
    return ServedModel(spec, mlflow_settings, run, version)


def test_a_first_candidate_passes_the_gates_of_the_shipped_model_file(served_model: ServedModel) -> None:
    assert training_runs.read_verdict(served_model.settings, served_model.run.run_id) == "promote"
    evaluation = load_evaluation(served_model.run, settings=served_model.settings)
    assert evaluation.rows > 1000
    metric, minimum = {"churn": ("roc_auc", 0.83), "insurance": ("r2", 0.8)}[served_model.spec.name]
    assert evaluation.candidate[metric].value > minimum


def test_the_profile_of_data_without_time_has_no_windows(served_model: ServedModel, tmp_path: Path) -> None:
    registry.download(served_model.settings, served_model.spec.name, served_model.version, tmp_path)
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["rows"] == 6000
    assert profile["windows"] == 0
    assert {entry["psi_95"] for entry in profile["features"].values()} == {0.0}


def test_the_candidate_that_was_evaluated_is_scored_in_place_of_the_champion(
    served_model: ServedModel, tmp_path: Path
) -> None:
    """New entities are loaded. The old test entities remain test entities, and the final fit has learned from them."""
    tags = registry.version_tags(served_model.settings, served_model.spec.name, served_model.version)
    assert tags["evaluated_as"] == str(served_model.run.candidate_version)
    entities = worlds.example_world(served_model.spec.name, end=NOW, customers=6600)
    file = tmp_path / "more_entities.csv"
    entities.to_csv(file, index=False, quoting=csv.QUOTE_MINIMAL)
    report = load_file(
        file, spec=served_model.spec, settings=served_model.settings, caused_by="test", now=NOW + timedelta(hours=1)
    )
    assert (report.features_added, report.labels_added, report.unchanged) == (600, 600, 12_000)
    second_run = served_model.train(f"t/{served_model.spec.name} again")
    evaluation = load_evaluation(second_run, settings=served_model.settings)
    assert evaluation.champion_version == served_model.version
    assert evaluation.compared_rows == evaluation.rows
    first_evaluation = load_evaluation(served_model.run, settings=served_model.settings)
    metric = served_model.spec.gates.champion.metric
    first_split, second_split = (
        split_rows(
            read_snapshot(str(run.snapshot_id), settings=served_model.settings).frame,
            spec=served_model.spec,
            until=newest_label(run),
        )
        for run in (served_model.run, second_run)
    )
    assert set(first_split.test["entity_id"]) < set(second_split.test["entity_id"])
    assert not set(first_split.test["entity_id"]) & set(second_split.train["entity_id"])
    # The final fit was fitted on these rows too, so its metric would be far better.
    assert evaluation.champion[metric].value == pytest.approx(first_evaluation.candidate[metric].value, rel=0.1)
    with session(served_model.settings, "pipeline") as connection:
        verdict = decisions.find_verdict(connection, second_run.run_id)
    assert verdict is not None
    assert {gate["name"] for gate in verdict["gates"]} >= {"min_rows", f"champion.{metric}"}


def test_a_scheduled_run_trains_only_if_a_label_is_new_or_the_model_file_changed(served_model: ServedModel) -> None:
    def schedule(spec: ModelSpec, caused_by: str) -> tuple[str, str]:
        training_runs.record_schedule(served_model.settings, spec, caused_by=caused_by, now=NOW)
        # A retry records nothing new.
        second_id = training_runs.record_schedule(served_model.settings, spec, caused_by=caused_by, now=NOW)
        with session(served_model.settings, "pipeline") as connection:
            query = text("SELECT id, action, cause FROM retrain_decision WHERE caused_by = :by")
            (row,) = connection.execute(query, {"by": caused_by}).mappings()
        assert row["id"] == second_id
        return row["action"], row["cause"]

    name = served_model.spec.name
    assert schedule(served_model.spec, f"{name} repeated") == ("hold", "no_new_labels")
    with pytest.raises(NothingToDo):
        training_runs.claim(
            served_model.settings, spec=served_model.spec, run_id=f"{name} repeated", now=NOW, window_end=NOW
        )
    edited = ModelSpec.parse(served_model.spec.to_json() | {"description": "edited"}, file="edited.yaml")
    assert schedule(edited, f"{name} edited") == ("retrain", "schedule")
