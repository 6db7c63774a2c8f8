"""Loads of files through the loader and the command."""

import gzip
import json
import secrets
import subprocess
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import text

from db.admin import bootstrap
from db.session import session
from db.store.loads import latest_commit_seq
from pipelines.loading import files
from pipelines.loading.loader import NOT_GIVEN, load_file
from pipelines.spec import ModelSpec
from stack.example_data.load_example import load_example
from stack.example_data.worlds import example_world
from tests import commands
from tests.integration.conftest import environment_of
from utils.errors import DataRefused, MissingColumns, NotFound, RowsRefused
from utils.settings import STORE_DB, Settings
from utils.version import ROOT

NOW = datetime(2026, 10, 1, 12)
SECRET = "000-12-3456"


@pytest.fixture
def spec(settings: Settings, credit_score: ModelSpec) -> ModelSpec:
    """credit_score under a new name, with empty tables."""
    new_spec = credit_score.model_copy(update={"name": f"credit_{secrets.token_hex(4)}"})
    bootstrap.migrate(settings, [new_spec.store])
    return new_spec


@pytest.fixture(scope="module")
def world() -> pd.DataFrame:
    return example_world("credit_score", end=NOW, customers=60).astype({"ssn": object}).assign(ssn=SECRET)


def load(path: Path, spec: ModelSpec, settings: Settings) -> Any:
    return load_file(path, spec=spec, settings=settings, caused_by="test", now=NOW)


def count(settings: Settings, table: str) -> int:
    with session(settings, "reader", STORE_DB) as connection:
        return connection.scalar(text(f"SELECT COUNT(*) FROM {table}"))


def write_table(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_every_kind_of_file_gives_the_same_rows(settings, spec, world, tmp_path, name):
    report = load(write_table(world, tmp_path / name), spec, settings)
    assert (report.rows, report.features_added, report.labels_added) == (780, 780, 780)
    assert report.notes == (NOT_GIVEN,)
    assert count(settings, spec.store.features_table) == count(settings, spec.store.labels_table) == 780
    second_report = load(write_table(world, tmp_path / "again.csv"), spec, settings)
    assert (second_report.unchanged, second_report.commit_seq) == (1560, None)


def test_a_file_larger_than_a_chunk_is_one_batch(settings, spec, world, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 20_000)
    row_counts: list[int] = []
    path = write_table(world, tmp_path / "rows.csv")
    report = load_file(
        path,
        spec=spec,
        settings=settings,
        caused_by="test",
        now=NOW,
        progress=lambda rows, share: row_counts.append(rows),
    )
    assert len(row_counts) > 5
    assert row_counts[-1] == report.features_added == 780
    assert latest_commit_seq(settings, spec.name) == 1


def test_private_columns_reach_neither_the_store_nor_a_message(settings, spec, world, tmp_path):
    broken = world.assign(age=world["age"].astype(object).where(world.index != 5, "old"))
    with pytest.raises(RowsRefused) as refused:
        load(write_table(broken, tmp_path / "rows.csv"), spec, settings)
    assert SECRET not in str(refused.value)
    load(write_table(world, tmp_path / "rows.csv"), spec, settings)
    with session(settings, "reader", STORE_DB) as connection:
        columns = connection.scalars(
            text("SELECT column_name FROM information_schema.columns WHERE table_name LIKE :name"),
            {"name": f"{spec.name}%"},
        ).all()
    assert columns
    assert not {"name", "ssn"} & set(columns)


def test_one_wrong_row_refuses_the_whole_load_with_its_line(settings, spec, world, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 20_000)
    broken = world.assign(credit_mix=world["credit_mix"].where(world.index != 700, "Splendid"))
    with pytest.raises(RowsRefused, match=r"1 of 780 rows .* line 702, credit_mix = 'Splendid': is not one of Good"):
        load(write_table(broken, tmp_path / "rows.csv"), spec, settings)
    assert count(settings, spec.store.features_table) == count(settings, spec.store.latest_table) == 0
    assert latest_commit_seq(settings, spec.name) == 0


def test_a_row_with_too_few_values_is_refused_without_its_text(settings, spec, world, tmp_path):
    path = write_table(world, tmp_path / "rows.csv")
    lines = path.read_text().splitlines()
    lines[3] = f"c,2026-01-01,{SECRET}"
    path.write_text("\n".join(lines))
    with pytest.raises(RowsRefused, match="line 4, number of values = '3'") as refused:
        load(path, spec, settings)
    assert SECRET not in str(refused.value)


def test_a_missing_column_is_named(settings, spec, world, tmp_path):
    with pytest.raises(MissingColumns, match=r"rows\.csv: missing columns age, occupation; it has customer_id"):
        load(write_table(world.drop(columns=["age", "occupation"]), tmp_path / "rows.csv"), spec, settings)


def test_features_and_labels_may_come_in_files_of_their_own(settings, spec, world, tmp_path):
    labels = write_table(world[["customer_id", "date", "credit_score"]], tmp_path / "labels.csv")
    features = write_table(world.drop(columns="credit_score"), tmp_path / "features.csv")
    report = load(labels, spec, settings)
    assert (report.features_added, report.labels_added) == (0, 780)
    report = load(features, spec, settings)
    assert (report.features_added, report.labels_added) == (780, 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"customer_id,customer_id\n", "names a column twice"),
        (b"\xff\xfe\x00", "is not utf-16"),
        (b"customer_id,date,credit_score\n", "holds no rows"),
        (b"customer_id,date,credit_score\nc,2026-01-01,\xff\n", "is not utf-8: name the right one with --encoding"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_in_one_line(settings, spec, tmp_path, content, expected):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataRefused, match=expected) as refused:
        load(path, spec, settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv.gz"])
def test_a_damaged_file_is_refused_in_one_line(settings, spec, tmp_path, name):
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(DataRefused, match="can't be read as a table") as refused:
        load(tmp_path / name, spec, settings)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_not_found(settings, spec, tmp_path):
    with pytest.raises(NotFound, match=r"there is no file .*nowhere\.csv"):
        load(tmp_path / "nowhere.csv", spec, settings)


def test_the_error_for_a_model_without_example_names_the_models_with_one(settings, spec):
    with pytest.raises(NotFound, match="credit_score"):
        load_example(spec=spec, settings=settings, now=NOW)


@pytest.fixture
def evergreen(settings: Settings, spec: ModelSpec, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command with its own env file and a models folder that holds only `spec`."""
    shipped = (ROOT / "models" / "credit_score.yaml").read_text()
    (tmp_path / f"{spec.name}.yaml").write_text(shipped.replace("name: credit_score", f"name: {spec.name}"))
    return partial(commands.evergreen, environment=environment_of(settings, tmp_path))


def test_the_command_loads_a_file_and_reports_it_in_one_line(evergreen, spec, world, tmp_path):
    path = write_table(world, tmp_path / "rows.csv")
    first_run = evergreen("load", spec.name, str(path))
    assert first_run.returncode == 0, first_run.stderr
    assert "780 feature rows and 780 labels added" in first_run.stdout
    assert first_run.stdout.count("\n") == 1
    assert "available_at was not given" in first_run.stderr
    second_run = evergreen("load", spec.name, str(path), "--json")
    assert json.loads(second_run.stdout)["rows"] == 780
    assert json.loads(second_run.stdout)["features_added"] == 0


def test_the_command_refuses_in_one_line_with_an_exit_code(evergreen, spec, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("customer_id,date\nc,2026-01-01\n")
    for arguments, code in (
        (["load", spec.name, str(path)], 4),
        (["load", spec.name, str(tmp_path / "no.csv")], 5),
        (["load", "nothing", str(path)], 2),
    ):
        process = evergreen(*arguments)
        assert (process.returncode, process.stdout, process.stderr.count("\n")) == (code, "", 1)
        assert process.stderr.startswith("evergreen: ")


def test_the_command_migrates_and_reports_when_there_is_nothing_to_do(evergreen):
    process = evergreen("migrate")
    assert (process.returncode, process.stdout) == (0, "nothing to do: all tables are there\n"), process.stderr
    assert json.loads(evergreen("migrate", "--json").stdout)["done"] == []
