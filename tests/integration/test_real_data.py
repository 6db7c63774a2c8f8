"""Two data sets from outside this project, each with a model file and the `evergreen` command alone.

The tests read them from `../shared/data` beside the checkout, or from the folder in the variable REAL_DATA.
docs/real_data.md shows the results.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stack.programs.program import settings_environment
from tests.commands import evergreen
from utils.settings import Settings
from utils.version import ROOT

DATA = Path(os.environ.get("REAL_DATA") or ROOT.parent / "shared" / "data")
PASSWORDS = tuple(f"db_{role}_password" for role in ("admin", "loader", "pipeline", "reader"))


def needs(file: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / file).is_file(), reason=f"{file} is not in {DATA}")


@pytest.fixture(scope="module")
def user(mlflow_settings: Settings) -> Any:
    """The command line for a user with the model files of `examples/`."""
    settings = mlflow_settings.model_copy(update={"models_dir": ROOT / "examples"})
    environment = {**os.environ, **settings_environment(settings, secrets=PASSWORDS)}

    def run(*arguments: str) -> Any:
        process = evergreen(*arguments, "--json", environment=environment)
        assert process.returncode == 0, process.stderr[-2000:]
        return json.loads(process.stdout)

    run("migrate")
    return run


@needs("telco_churn.csv")
def test_a_table_without_time_reaches_a_good_area_under_the_curve(user: Any) -> None:
    report = user("load", "telco_churn", str(DATA / "telco_churn.csv"))
    assert (report["labels_added"], report["rejects"]) == (7043, 0)
    verdict = user("train", "telco_churn")
    assert verdict["verdict"] == "promote", verdict["reason"]
    roc_auc = next(gate["value"] for gate in verdict["gates"] if gate["name"] == "minimum.roc_auc")
    assert roc_auc >= 0.83


@needs("bike_sharing_hourly.csv")
def test_retraining_every_month_beats_the_first_years_model_left_alone(user: Any) -> None:
    report = user("load", "bike_sharing", str(DATA / "bike_sharing_hourly.csv"))
    assert report["labels_added"] == 17_379
    dates = ("--from", "2012-01-01", "--to", "2013-01-01", "--every", "1mo")
    report = user("replay", "bike_sharing", *dates, "--trials", "6")
    assert len(report["steps"]) == 12
    assert report["rows"] == sum(step["rows"] for step in report["steps"]) == 8733
    assert report["ratio"] <= 0.62
    assert report["served"] < 80  # rentals an hour; one CatBoost model fitted on all of 2011 is off by 125
