"""The way from a file of rows to a loaded model, with the commands of a user: init, migrate, load."""

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
    """The command with a folder of model files that is empty at first."""
    own_settings = settings.model_copy(update={"models_dir": tmp_path / "models"})
    environment = {**os.environ, **settings_environment(own_settings, secrets=PASSWORDS)}
    return partial(commands.evergreen, environment=environment)


def init_and_load(evergreen: Run, model: str, path: Path, *options: str) -> tuple[Any, Any]:
    """Run init, migrate and load. Return the reports of `init` and `load`."""
    reports = []
    for arguments in (("init", model, "--from", str(path), *options), ("migrate",), ("load", model, str(path))):
        process = evergreen(*arguments, "--json")
        assert process.returncode == 0, process.stderr
        reports.append(json.loads(process.stdout))
    return reports[0], reports[2]


def load_written_spec(tmp_path: Path, model: str) -> ModelSpec:
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
    init_report, load_report = init_and_load(evergreen, model, path, *options)
    assert (load_report["rows"], load_report["labels_added"], load_report["rejects"]) == (len(frame), len(frame), 0)
    shipped, guessed = load_spec(ROOT / "models" / f"{world}.yaml"), load_written_spec(tmp_path, model)
    assert (guessed.task, guessed.entity, guessed.timed) == (shipped.task, shipped.entity, shipped.timed)
    assert set(guessed.label.classes) == set(shipped.label.classes)
    assert set(init_report["private"]) == set(shipped.features.private)
    assert set(guessed.features.columns) == set(shipped.features.columns)
    assert guessed.columns_of("numeric") == shipped.columns_of("numeric")


def test_the_page_of_the_examples_shows_what_init_prints_for_its_table(evergreen: Run, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "make_orders.py")]
    path = tmp_path / "orders.csv"
    path.write_text(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    process = evergreen("init", "late_orders", "--from", str(path))
    assert process.returncode == 0, process.stderr
    summary = process.stdout.splitlines()[0].partition("late_orders.yaml")[2]
    assert summary in (ROOT / "examples" / "README.md").read_text()
    assert load_written_spec(tmp_path, "late_orders").features.private == ("Phone",)


def test_the_command_asks_in_one_line_and_does_not_overwrite_a_file(evergreen: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    pd.DataFrame({"id": range(60), "a": [n % 7 for n in range(60)], "b": [n % 2 for n in range(60)]}).to_csv(path)
    without_label = evergreen("init", "orders", "--from", str(path))
    assert (without_label.returncode, without_label.stdout, without_label.stderr.count("\n")) == (4, "", 1)
    assert "by --label: " in without_label.stderr
    options = ("init", "orders", "--from", str(path), "--label", "b", "--entity", "id")
    assert evergreen(*options).returncode == 0
    second_run = evergreen(*options)
    assert (second_run.returncode, second_run.stderr.count("\n")) == (2, 1)
    assert "--force" in second_run.stderr
    assert evergreen(*options, "--force").returncode == 0


@needs("telco_churn.csv")
def test_customers_of_a_phone_company_load_with_the_file_that_was_guessed(evergreen: Run, tmp_path: Path) -> None:
    _, load_report = init_and_load(evergreen, "phone_churn", DATA / "telco_churn.csv")
    assert (load_report["labels_added"], load_report["rejects"]) == (7043, 0)
    guessed, example = load_written_spec(tmp_path, "phone_churn"), load_spec(ROOT / "examples" / "telco_churn.yaml")
    assert (guessed.task, guessed.entity, guessed.label.classes) == (
        example.task,
        example.entity,
        example.label.classes,
    )
    assert len(guessed.columns_of("numeric")) == len(example.columns_of("numeric")) == 4
    assert "11 of 7,043 blank" in (tmp_path / "models" / "phone_churn.yaml").read_text()


@needs("bike_sharing_hourly.csv")
def test_rented_bicycles_load_with_the_file_that_was_guessed_and_without_their_leaks(
    evergreen: Run, tmp_path: Path
) -> None:
    init_report, load_report = init_and_load(evergreen, "bicycles", DATA / "bike_sharing_hourly.csv", "--label", "cnt")
    assert load_report["labels_added"] == 17_379
    guessed = load_written_spec(tmp_path, "bicycles")
    assert (guessed.source.event_time, guessed.source.time_of_day) == ("dteday", "hr")
    assert init_report["left_out"] == ["casual", "registered"]
