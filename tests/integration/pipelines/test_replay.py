"""A replay in steps of 30 days. The relation of features and label changes, and the search chooses the look-back."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sqlalchemy import text

from db.admin import bootstrap
from db.session import session
from pipelines import registry
from pipelines.loading.loader import load_file
from pipelines.replay import Replay, replay
from pipelines.runs import training_runs
from pipelines.runs.snapshot import read_snapshot
from pipelines.spec import ModelSpec, find_spec
from utils.errors import DataRefused
from utils.settings import Settings

FIRST_DAY, DAYS, SHOPS = datetime(2025, 1, 1), 270, 12
CHANGE_DAY = 140  # from this day on, the same warmth sells twice as much
MODEL = {
    "name": "kiosks",
    "task": "regression",
    "entity": "shop",
    "source": {"event_time": "day", "time_of_day": "hour"},
    "label": {"column": "sold"},
    "features": {"columns": {"warmth": {"type": "numeric"}, "hour": {"type": "numeric"}}},
    "training": {
        "window": "auto",
        "split": {"by": "time", "validation": "7d", "test": "14d"},
        "search": {"trials": 4, "timeout": "60s", "space": {"depth": [3, 4], "learning_rate": [0.2, 0.3]}},
    },
    "gates": {"champion": {"margin": 3}, "min_rows": 100},
}


def kiosks() -> pd.DataFrame:
    """One row per shop and day."""
    random = np.random.default_rng(1)
    day, shop = np.divmod(np.arange(DAYS * SHOPS), SHOPS)
    warmth, hour = random.normal(20, 5, len(day)), random.integers(8, 20, len(day))
    sold = 2 * warmth * np.where(day >= CHANGE_DAY, 2, 1) + hour + random.normal(0, 2, len(day))
    times = [f"{FIRST_DAY + timedelta(days=int(number)):%Y-%m-%d}" for number in day]
    return pd.DataFrame({"shop": [f"s{n}" for n in shop], "day": times, "hour": hour, "warmth": warmth, "sold": sold})


@dataclass(frozen=True, slots=True)
class FinishedReplay:
    """A replay that has run, with its model and settings."""

    spec: ModelSpec
    settings: Settings
    result: Replay

    def count(self, table: str, model: str) -> int:
        with session(self.settings, "reader") as connection:
            return int(
                connection.scalar(text(f"SELECT COUNT(*) FROM {table} WHERE model = :model"), {"model": model}) or 0
            )


@pytest.fixture(scope="module")
def finished_replay(mlflow_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> FinishedReplay:
    folder = tmp_path_factory.mktemp("models")
    (folder / "kiosks.yaml").write_text(yaml.safe_dump(MODEL))
    spec = find_spec(folder, "kiosks")
    bootstrap.migrate(mlflow_settings, [spec.store])
    kiosks().to_csv(folder / "kiosks.csv", index=False)
    load_file(folder / "kiosks.csv", spec=spec, settings=mlflow_settings, caused_by="test", now=datetime(2026, 1, 1))
    start = FIRST_DAY + timedelta(days=120)
    result = replay(mlflow_settings, spec=spec, start=start, end=FIRST_DAY + timedelta(days=DAYS), every="30d")
    return FinishedReplay(spec, mlflow_settings, result)


def test_each_step_moves_the_window_end_and_scores_the_labels_until_the_next_step(
    finished_replay: FinishedReplay,
) -> None:
    steps = finished_replay.result.steps
    assert [(step.window_end - FIRST_DAY).days for step in steps] == [120, 150, 180, 210, 240]
    assert [step.until for step in steps[:-1]] == [step.window_end for step in steps[1:]]
    assert [step.rows for step in steps] == [30 * SHOPS] * 5
    assert finished_replay.result.rows == 150 * SHOPS


def test_the_retrained_versions_are_far_better_than_the_first_version(finished_replay: FinishedReplay) -> None:
    first_step, *_, last_step = finished_replay.result.steps
    assert first_step.version == 2  # the final fit of candidate 1
    assert first_step.served == first_step.left_alone
    assert last_step.served is not None
    assert last_step.left_alone is not None
    assert last_step.served < 0.3 * last_step.left_alone
    assert finished_replay.result.served < 0.8 * finished_replay.result.left_alone


def test_the_search_chooses_the_look_back_and_the_final_fit_uses_it(
    finished_replay: FinishedReplay, tmp_path: Path
) -> None:
    last_step = finished_replay.result.steps[-1]
    assert last_step.learned_from in {"30d", "60d", "90d"}  # all rows would mix both relations
    run = training_runs.load_run(
        finished_replay.settings, f"{finished_replay.result.name}/{last_step.window_end:%Y-%m-%dT%H:%M:%S}"
    )
    assert run.best_params is not None
    days = int(run.best_params["window"].removesuffix("d"))
    snapshot = read_snapshot(str(run.snapshot_id), settings=finished_replay.settings)
    assert len(snapshot.frame) > 239 * SHOPS
    assert last_step.version is not None
    registry.download(finished_replay.settings, finished_replay.result.name, last_step.version, tmp_path)
    fitted_row_count = json.loads((tmp_path / "profile.json").read_text())["rows"]
    assert abs(fitted_row_count - days * SHOPS) <= SHOPS


def test_a_replay_changes_no_table_or_registry_entry_of_the_serving_model(finished_replay: FinishedReplay) -> None:
    for table in ("retrain_decision", "training_run", "promotion_decision", "deployment"):
        assert finished_replay.count(table, finished_replay.spec.name) == 0
        assert finished_replay.count(table, finished_replay.result.name) > 0
    names = {model.name for model in registry.client(finished_replay.settings).search_registered_models()}
    assert finished_replay.result.name in names
    assert finished_replay.spec.name not in names


def test_a_step_before_the_first_rows_fails_and_the_next_step_runs(finished_replay: FinishedReplay) -> None:
    start = FIRST_DAY + timedelta(days=-5)
    result = replay(
        finished_replay.settings,
        spec=finished_replay.spec,
        start=start,
        end=FIRST_DAY + timedelta(days=85),
        every="60d",
        trials=1,
    )
    assert [(step.verdict, step.version) for step in result.steps] == [("failed", None), ("promote", 2)]
    assert "no label between" in result.steps[0].reason
    assert result.rows == 30 * SHOPS


def test_the_error_of_a_replay_without_a_promoted_version_names_the_reason(finished_replay: FinishedReplay) -> None:
    with pytest.raises(DataRefused, match=r"no version served any label in the replay: .*no label between"):
        replay(
            finished_replay.settings,
            spec=finished_replay.spec,
            start=datetime(2001, 1, 1),
            end=datetime(2001, 2, 1),
            every="1mo",
        )


def test_a_replay_of_data_without_time_or_with_a_wrong_interval_is_rejected(finished_replay: FinishedReplay) -> None:
    timeless = ModelSpec.parse({**MODEL, "source": {}, "training": {}}, file="kiosks.yaml")
    with pytest.raises(DataRefused, match="no time"):
        replay(finished_replay.settings, spec=timeless, start=FIRST_DAY, end=datetime(2026, 1, 1), every="1mo")
    with pytest.raises(DataRefused, match="1mo"):
        replay(
            finished_replay.settings,
            spec=finished_replay.spec,
            start=FIRST_DAY,
            end=datetime(2026, 1, 1),
            every="monthly",
        )
