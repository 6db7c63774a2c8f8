"""From a file of rows to a loaded model, as a user does it: init, migrate, load."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.spec import ModelSpec, load_spec
from stack.example_data.worlds import example_world
from stack.programs.program import settings_environment
from tests import commands
from tests.integration.test_real_data import DATA, needs
from utils.settings import Settings
from utils.version import ROOT

PASSWORDS = tuple(f"db_{role}_password" for role in ("admin", "loader", "pipeline", "reader"))
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def evergreen(settings: Settings, tmp_path: Path) -> Run:
    """The command over a folder of model files that is empty at first."""
    here = settings.model_copy(update={"models_dir": tmp_path / "models"})
    environment = {**os.environ, **settings_environment(here, secrets=PASSWORDS)}
    return partial(commands.evergreen, environment=environment)


def started(evergreen: Run, model: str, path: Path, *options: str) -> tuple[Any, Any]:
    """What `init` and `load` say."""
    done = []
    for arguments in (("init", model, "--from", str(path), *options), ("migrate",), ("load", model, str(path))):
        ran = evergreen(*arguments, "--json")
        assert ran.returncode == 0, ran.stderr
        done.append(json.loads(ran.stdout))
    return done[0], done[2]


def written(tmp_path: Path, model: str) -> ModelSpec:
    return load_spec(tmp_path / "models" / f"{model}.yaml")


@pytest.mark.parametrize(
    ("world", "suffix", "options"),
    [
        ("credit_score", ".parquet", ("--label", "credit_score", "--entity", "customer_id")),
        ("credit_score", ".csv", ("--label", "credit_score", "--entity", "customer_id")),
        ("churn", ".csv", ()),
        ("insurance", ".parquet", ("--label", "yearly_cost")),
        ("insurance", ".csv", ("--label", "yearly_cost")),
    ],
)
def test_the_file_that_init_writes_takes_every_row_it_was_guessed_from(
    world: str, suffix: str, options: tuple[str, ...], evergreen: Run, tmp_path: Path
) -> None:
    frame = example_world(world, end=datetime(2026, 9, 30), customers=400)
    path, model = tmp_path / f"rows{suffix}", f"{world}_{suffix[1:]}"
    frame.to_parquet(path, index=False) if suffix == ".parquet" else frame.to_csv(path, index=False)
    told, loaded = started(evergreen, model, path, *options)
    assert (loaded["rows"], loaded["labels_added"], loaded["rejects"]) == (len(frame), len(frame), 0)
    shipped, mine = load_spec(ROOT / "models" / f"{world}.yaml"), written(tmp_path, model)
    assert (mine.task, mine.entity, mine.timed) == (shipped.task, shipped.entity, shipped.timed)
    assert set(mine.label.classes) == set(shipped.label.classes)
    assert set(told["private"]) == set(shipped.features.private)
    assert set(mine.features.columns) == set(shipped.features.columns)
    assert mine.columns_of("numeric") == shipped.columns_of("numeric")


def test_the_page_of_the_examples_says_what_init_says_of_its_table(evergreen: Run, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "make_orders.py")]
    path = tmp_path / "orders.csv"
    path.write_text(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    done = evergreen("init", "late_orders", "--from", str(path))
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[0].partition("late_orders.yaml")[2]
    assert said in (ROOT / "examples" / "README.md").read_text()
    assert written(tmp_path, "late_orders").features.private == ("Phone",)


def test_the_command_asks_in_one_line_and_keeps_a_file_that_is_there(evergreen: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    pd.DataFrame({"id": range(60), "a": [n % 7 for n in range(60)], "b": [n % 2 for n in range(60)]}).to_csv(path)
    asked = evergreen("init", "orders", "--from", str(path))
    assert (asked.returncode, asked.stdout, asked.stderr.count("\n")) == (4, "", 1)
    assert "by --label: " in asked.stderr
    options = ("init", "orders", "--from", str(path), "--label", "b", "--entity", "id")
    assert evergreen(*options).returncode == 0
    kept = evergreen(*options)
    assert (kept.returncode, kept.stderr.count("\n")) == (2, 1)
    assert "--force" in kept.stderr
    assert evergreen(*options, "--force").returncode == 0


@needs("telco_churn.csv")
def test_customers_of_a_phone_company_load_with_the_file_that_was_guessed(evergreen: Run, tmp_path: Path) -> None:
    _, loaded = started(evergreen, "phone_churn", DATA / "telco_churn.csv")
    assert (loaded["labels_added"], loaded["rejects"]) == (7043, 0)
    mine, example = written(tmp_path, "phone_churn"), load_spec(ROOT / "examples" / "telco_churn.yaml")
    assert (mine.task, mine.entity, mine.label.classes) == (example.task, example.entity, example.label.classes)
    assert len(mine.columns_of("numeric")) == len(example.columns_of("numeric")) == 4
    assert "11 of 7,043 blank" in (tmp_path / "models" / "phone_churn.yaml").read_text()


@needs("bike_sharing_hourly.csv")
def test_rented_bicycles_load_with_the_file_that_was_guessed_and_without_their_leaks(
    evergreen: Run, tmp_path: Path
) -> None:
    told, loaded = started(evergreen, "bicycles", DATA / "bike_sharing_hourly.csv", "--label", "cnt")
    assert loaded["labels_added"] == 17_379
    mine = written(tmp_path, "bicycles")
    assert (mine.source.event_time, mine.source.time_of_day) == ("dteday", "hr")
    assert told["left_out"] == ["casual", "registered"]
