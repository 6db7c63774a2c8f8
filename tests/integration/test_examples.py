"""The steps of `examples/README.md`: its file, its model file and its commands, up to the deployment."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.spec import load_spec
from stack.programs.program import settings_environment
from tests.commands import evergreen
from utils.settings import Settings
from utils.version import ROOT

PAGE = (ROOT / "examples" / "README.md").read_text()
PASSWORDS = tuple(f"db_{role}_password" for role in ("admin", "loader", "pipeline", "reader"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: the table that the page's script writes, and the model file that the page shows."""
    reader_folder = tmp_path_factory.mktemp("reader")
    script = [sys.executable, str(ROOT / "examples" / "make_orders.py")]
    (reader_folder / "orders.csv").write_text(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    (model_file,) = re.findall(r"(?s)```yaml\n(.*?)```", PAGE)
    (reader_folder / "models").mkdir()
    (reader_folder / "models" / "late_orders.yaml").write_text(model_file)
    return reader_folder


def test_the_table_is_the_one_that_the_page_shows(folder: Path) -> None:
    header = (folder / "orders.csv").read_text().splitlines()[0]
    assert header in PAGE


def test_the_commands_of_the_page_end_in_a_promoted_version(folder: Path, mlflow_settings: Settings) -> None:
    settings = mlflow_settings.model_copy(update={"models_dir": folder / "models"})
    environment = {**os.environ, **settings_environment(settings, secrets=PASSWORDS)}

    def run(*arguments: str) -> Any:
        process = evergreen(*arguments, "--json", environment=environment, cwd=folder)
        assert process.returncode == 0, process.stderr[-2000:]
        return json.loads(process.stdout)

    assert run("models", "late_orders")["name"] == "late_orders"
    run("migrate")  # part of `make up`
    assert run("load", "late_orders", "orders.csv")["labels_added"] == 4000
    assert run("load", "late_orders", "orders.csv")["labels_added"] == 0
    verdict = run("train", "late_orders", "--trials", "3")
    assert verdict["verdict"] == "promote", verdict["reason"]


@pytest.mark.parametrize("name", ["telco_churn", "bike_sharing"])
def test_the_example_model_files_are_valid(name: str) -> None:
    assert load_spec(ROOT / "examples" / f"{name}.yaml").name == name
    assert f"({name}.yaml)" in PAGE
