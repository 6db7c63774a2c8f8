"""Two data sets that this project did not make, each with a model file and the `evergreen` command alone.

They are looked for beside the checkout, in `../shared/data`, or where the variable REAL_DATA says; docs/real_data.md
shows what comes out.
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
    """The command line as a user types it, with the model files of `examples/`."""
    settings = mlflow_settings.model_copy(update={"models_dir": ROOT / "examples"})
    environment = {**os.environ, **settings_environment(settings, secrets=PASSWORDS)}

    def run(*arguments: str) -> Any:
        done = evergreen(*arguments, "--json", environment=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    run("migrate")
    return run


@needs("telco_churn.csv")
def test_a_table_without_time_reaches_a_good_area_under_the_curve(user: Any) -> None:
    loaded = user("load", "telco_churn", str(DATA / "telco_churn.csv"))
    assert (loaded["labels_added"], loaded["rejects"]) == (7043, 0)
    verdict = user("train", "telco_churn")
    assert verdict["verdict"] == "promote", verdict["reason"]
    reached = next(gate["value"] for gate in verdict["gates"] if gate["name"] == "minimum.roc_auc")
    assert reached >= 0.83


@needs("bike_sharing_hourly.csv")
def test_retraining_every_month_beats_the_first_years_model_left_alone(user: Any) -> None:
    loaded = user("load", "bike_sharing", str(DATA / "bike_sharing_hourly.csv"))
    assert loaded["labels_added"] == 17_379
    dates = ("--from", "2012-01-01", "--to", "2013-01-01", "--every", "1mo")
    done = user("replay", "bike_sharing", *dates, "--trials", "6")
    assert len(done["steps"]) == 12
    assert done["rows"] == sum(step["rows"] for step in done["steps"]) == 8733
    assert done["ratio"] <= 0.62
    assert done["served"] < 80  # rentals an hour; a plain CatBoost of all 2011 is off by 125
