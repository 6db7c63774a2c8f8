"""`evergreen migrate` after a change of the model file. Old snapshots stay readable."""

import copy
import json
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from sqlalchemy import text

from db.admin import bootstrap
from db.session import session
from db.store import plan
from db.store.schema import Column
from db.store.store_tables import load_lock
from pipelines.loading.loader import load_file
from pipelines.runs import training_runs
from pipelines.runs.extract import extract, read_rows
from pipelines.runs.snapshot import content_hash, read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from stack.programs.program import settings_environment
from tests import commands
from utils.errors import NotFound, SpecInvalid, StackError, UnknownModel
from utils.settings import STORE_DB, Settings

NOW = datetime(2026, 10, 1, 12)
FILE: dict[str, Any] = {
    "task": "binary",
    "entity": "shop",
    "source": {"event_time": "day"},
    "label": {"column": "outcome", "classes": ["low", "high"]},
    "features": {
        "max_age": "30d",
        "columns": {
            "amount": {"type": "numeric"},
            "kind": {"type": "categorical"},
            "note": {"type": "text"},
        },
    },
}
ROWS = pd.DataFrame(
    {
        "shop": [f"s{n % 7}" for n in range(60)],
        "day": [str(NOW.date() - timedelta(days=1 + n // 7)) for n in range(60)],
        "amount": [n / 7 if n % 5 else None for n in range(60)],
        "kind": [("old", "new", None)[n % 3] for n in range(60)],
        "note": [f"note {n}, with a comma" for n in range(60)],
        "extra": [n * 1.5 for n in range(60)],
        "outcome": [("low", "high")[n % 2] for n in range(60)],
    }
)
Change = Callable[[dict[str, Any]], Any]


def spec_of(file: dict[str, Any], change: Change | None = None) -> ModelSpec:
    """The model file, or a copy after `change`."""
    new_file = copy.deepcopy(file)
    if change:
        change(new_file)
    return ModelSpec.parse(new_file, file="a test's file")


def features(file: dict[str, Any]) -> dict[str, Any]:
    return file["features"]["columns"]


def add_extra(file: dict[str, Any]) -> None:
    features(file)["extra"] = {"type": "numeric"}


def kind_to_text(file: dict[str, Any]) -> None:
    features(file)["kind"] = {"type": "text"}


def without_kind(file: dict[str, Any]) -> None:
    del features(file)["kind"]


def retype(column: str, kind: str) -> Change:
    return lambda file: features(file).update({column: {"type": kind}})


def timeless(file: dict[str, Any]) -> None:
    file["source"] = {}
    del file["features"]["max_age"]


def regression(file: dict[str, Any]) -> None:
    file["task"] = "regression"
    del file["label"]["classes"]


@pytest.fixture
def file(settings: Settings) -> dict[str, Any]:
    """A model file with a new name, whose tables exist."""
    model_file = {"name": f"m{secrets.token_hex(4)}", **copy.deepcopy(FILE)}
    bootstrap.migrate(settings, [spec_of(model_file).store])
    return model_file


def load(spec: ModelSpec, settings: Settings, folder: Path) -> Any:
    ROWS.to_csv(folder / "rows.csv", index=False)
    return load_file(folder / "rows.csv", spec=spec, settings=settings, caused_by="test", now=NOW)


@pytest.fixture
def loaded_file(file: dict[str, Any], settings: Settings, tmp_path: Path) -> dict[str, Any]:
    load(spec_of(file), settings, tmp_path)
    return file


def run_with_snapshot(spec: ModelSpec, settings: Settings) -> Run:
    """A run of `spec` up to its snapshot."""
    run_id = f"t/{secrets.token_hex(4)}"
    training_runs.record_decision(settings, model=spec.name, cause="manual", reason="a test", caused_by=run_id, now=NOW)
    run = training_runs.claim(settings, spec=spec, run_id=run_id, now=NOW, window_end=NOW)
    extract(run, settings=settings, now=NOW)
    return training_runs.load_run(settings, run_id)


def frame_of(run: Run, settings: Settings) -> pd.DataFrame:
    """The run's rows, read from the store again."""
    frame: pd.DataFrame = pa.concat_tables(read_rows(run, settings=settings)).to_pandas()
    return frame


def plan_lines(settings: Settings, spec: ModelSpec, *drop: str) -> list[str]:
    return [change.planned for change in bootstrap.plan(settings, [spec.store], drop={spec.name: set(drop)})]


@pytest.mark.parametrize("change", [add_extra, kind_to_text, without_kind], ids=["added", "widened", "removed"])
def test_a_snapshot_of_the_old_file_stays_readable_from_its_file_and_from_the_store(
    change: Change, loaded_file: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    run = run_with_snapshot(spec_of(loaded_file), settings)
    new_spec = spec_of(loaded_file, change)
    bootstrap.migrate(settings, [new_spec.store])
    load(new_spec, settings, tmp_path)  # later rows, loaded with the new file
    assert run.snapshot_id
    recorded = read_snapshot(run.snapshot_id, settings=settings)
    assert len(recorded.frame) == len(ROWS)
    assert recorded.frame["kind"].notna().sum() == ROWS["kind"].notna().sum()
    assert content_hash(read_rows(run, settings=settings)) == recorded.manifest.content_sha256
    later_run = run_with_snapshot(new_spec, settings)
    assert set(next(read_rows(later_run, settings=settings)).column_names) == {
        *("entity_id", "event_time", "outcome"),
        *new_spec.features.columns,
    }


def test_added_columns_and_widened_types_are_planned_applied_and_then_present(
    loaded_file: dict[str, Any], settings: Settings
) -> None:
    spec = spec_of(loaded_file, lambda file: [change(file) for change in (add_extra, kind_to_text)])
    store = f"{STORE_DB}.{spec.name}"
    shown_changes: list[Any] = []
    expected = [
        f"column kind of {store}_features from category to text",
        f"column extra to {store}_features",
        f"column kind of {store}_latest from category to text",
        f"column extra to {store}_latest",
    ]
    verbs = ("widen", "add", "widen", "add")
    assert plan_lines(settings, spec) == [f"{verb} {rest}" for verb, rest in zip(verbs, expected, strict=True)]
    changes = bootstrap.migrate(settings, [spec.store], show=shown_changes.extend)
    assert [change.planned for change in shown_changes] == [
        f"{v} {rest}" for v, rest in zip(verbs, expected, strict=True)
    ]
    assert changes == [f"{verb} {rest}" for verb, rest in zip(("widened", "added") * 2, expected, strict=True)]
    assert bootstrap.migrate(settings, [spec.store]) == plan_lines(settings, spec) == []


def test_a_plan_changes_nothing(loaded_file: dict[str, Any], settings: Settings) -> None:
    spec = spec_of(loaded_file, add_extra)
    assert plan_lines(settings, spec) == plan_lines(settings, spec) != []


def test_a_removed_feature_keeps_its_values_and_has_them_if_it_is_added_again(
    loaded_file: dict[str, Any], settings: Settings
) -> None:
    new_spec = spec_of(loaded_file, without_kind)
    (line,) = plan_lines(settings, new_spec)
    assert line.startswith(f"keep column kind of {STORE_DB}.{new_spec.name}_features")
    assert bootstrap.migrate(settings, [new_spec.store]) == []
    rows = frame_of(run_with_snapshot(spec_of(loaded_file), settings), settings)
    assert rows["kind"].notna().sum() == ROWS["kind"].notna().sum()


def test_a_column_is_dropped_only_by_name_and_the_plan_counts_its_values(
    loaded_file: dict[str, Any], settings: Settings
) -> None:
    run = run_with_snapshot(spec_of(loaded_file), settings)
    new_spec = spec_of(loaded_file, without_kind)
    first, second = plan_lines(settings, new_spec, "kind")
    assert first == (
        f"drop column kind of {STORE_DB}.{new_spec.name}_features: 40 rows hold a value of it; 1 snapshot used it and"
        " can no longer be read again from the store, only from their files"
    )
    assert second == f"drop column kind of {STORE_DB}.{new_spec.name}_latest"
    bootstrap.migrate(settings, [new_spec.store], drop={new_spec.name: {"kind"}})
    assert plan_lines(settings, new_spec) == []
    assert run.snapshot_id
    assert len(read_snapshot(run.snapshot_id, settings=settings).frame) == len(ROWS)
    with pytest.raises(NotFound):
        read_rows(run, settings=settings)


@pytest.mark.parametrize(("column", "kind"), [("kind", "numeric"), ("note", "numeric"), ("amount", "categorical")])
def test_a_type_that_old_values_do_not_fit_is_refused_unless_the_column_is_dropped_by_name(
    column: str, kind: str, loaded_file: dict[str, Any], settings: Settings
) -> None:
    spec = spec_of(loaded_file, retype(column, kind))
    with pytest.raises(SpecInvalid, match=rf"features\.columns\.{column}: .*--drop {spec.name}\.{column}"):
        bootstrap.migrate(settings, [spec.store])
    # The values are unchanged.
    assert len(frame_of(run_with_snapshot(spec_of(loaded_file), settings), settings)) == len(ROWS)
    bootstrap.migrate(settings, [spec.store], drop={spec.name: {column}})
    rows = frame_of(run_with_snapshot(spec, settings), settings)
    assert rows[column].isna().all()
    assert rows.drop(columns=column).notna().any().all()
    assert plan_lines(settings, spec) == []


def test_a_text_column_holds_categories_without_a_change(loaded_file: dict[str, Any], settings: Settings) -> None:
    assert plan_lines(settings, spec_of(loaded_file, retype("note", "categorical"))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (timeless, "source.event_time: the store's rows have a time"),
        (regression, "task: the label outcome: the store already holds it as category, not as number"),
        (lambda file: file.update(entity="city"), "entity: the store's rows are those of shop"),
        (lambda file: file["label"].update(column="result"), "label.column: the store holds the label as outcome"),
    ],
    ids=["time", "task", "entity", "label"],
)
def test_a_change_of_the_meaning_of_stored_rows_is_refused_in_one_line_unless_there_are_none(
    change: Change, message: str, file: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    spec, original = spec_of(file, change), spec_of(file)
    changes = bootstrap.migrate(settings, [spec.store])
    assert changes == [f"made anew the tables of {spec.name}: they hold no rows"]
    assert bootstrap.migrate(settings, [spec.store]) == []
    bootstrap.migrate(settings, [original.store])  # and change the tables back
    load(original, settings, tmp_path)
    with pytest.raises(SpecInvalid) as refused:
        bootstrap.migrate(settings, [spec.store])
    assert str(refused.value).startswith(f"{spec.name}.yaml: {message}")
    assert "\n" not in str(refused.value)
    assert bootstrap.migrate(settings, [original.store]) == []


def test_one_refused_model_leaves_the_others_unchanged(
    loaded_file: dict[str, Any], new_schema: Callable[..., Any], settings: Settings
) -> None:
    schema = new_schema()
    other = replace(schema, features=(*schema.features, Column("extra", "number")))
    bad_store = spec_of(loaded_file, retype("amount", "text")).store
    with pytest.raises(SpecInvalid):
        bootstrap.migrate(settings, [other, bad_store])
    with session(settings, "reader", STORE_DB) as connection:
        columns = connection.scalars(text(f"SHOW COLUMNS FROM {other.features_table}")).all()
    assert "extra" not in columns


def test_tables_without_the_note_of_their_entity_column_get_one(
    loaded_file: dict[str, Any], settings: Settings
) -> None:
    schema = spec_of(loaded_file).store
    with session(settings, "admin", STORE_DB) as connection:
        for table in (schema.features_table, schema.labels_table):
            connection.execute(text(f"ALTER TABLE {table} COMMENT ''"))
    notes = [f"noted entity: shop at {STORE_DB}.{t}" for t in (schema.features_table, schema.labels_table)]
    assert bootstrap.migrate(settings, [schema]) == notes
    assert bootstrap.migrate(settings, [schema]) == []


@pytest.mark.parametrize("column", ["amount", "outcome", "event_time", "nothing"])
def test_only_a_column_that_is_not_used_can_be_dropped(
    column: str, loaded_file: dict[str, Any], settings: Settings
) -> None:
    with pytest.raises((SpecInvalid, NotFound), match=column):
        bootstrap.migrate(settings, [spec_of(loaded_file, without_kind).store], drop={loaded_file["name"]: {column}})


@pytest.mark.parametrize("user", ["load", "reader"])
def test_a_column_is_not_dropped_during_a_load_or_a_read(
    user: str, loaded_file: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WAIT_SECONDS", 1)
    schema = spec_of(loaded_file, without_kind).store
    hold = {
        "load": f"SELECT GET_LOCK('{load_lock(schema.model)}', 1)",
        "reader": f"SELECT COUNT(*) FROM {schema.features_table}",
    }
    with session(settings, "loader", STORE_DB) as connection:
        assert connection.scalar(text(hold[user]))
        with pytest.raises(StackError, match="try again"):
            bootstrap.migrate(settings, [schema], drop={schema.model: {"kind"}})
    changes = bootstrap.migrate(settings, [schema], drop={schema.model: {"kind"}})
    assert [line.split(" of ")[0] for line in changes] == ["dropped column kind"] * 2


def test_two_migrations_at_the_same_time_succeed_and_apply_each_change_once(
    loaded_file: dict[str, Any], settings: Settings
) -> None:
    schema = spec_of(loaded_file, add_extra).store
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: bootstrap.migrate(settings, [schema]), range(2)))
    assert sorted(len(lines) for lines in results) == [0, 2]


@pytest.fixture
def evergreen(loaded_file: dict[str, Any], settings: Settings, tmp_path: Path) -> Callable[..., Any]:
    """The command without a terminal, with a folder that holds only this model file."""
    (tmp_path / f"{loaded_file['name']}.yaml").write_text(yaml.safe_dump(loaded_file))
    own_settings = settings.model_copy(update={"models_dir": tmp_path})
    environment = {**os.environ, **settings_environment(own_settings, secrets=("db_admin_password",))}
    return partial(commands.evergreen, "migrate", environment=environment)


def test_the_command_shows_the_plan_refuses_in_one_line_and_drops_named_columns(
    evergreen: Callable[..., Any], loaded_file: dict[str, Any], tmp_path: Path
) -> None:
    name, path = loaded_file["name"], tmp_path / f"{loaded_file['name']}.yaml"
    features(loaded_file)["kind"] = {"type": "numeric"}
    path.write_text(yaml.safe_dump(loaded_file))
    preview = evergreen("--plan")
    assert preview.returncode == 0, preview.stderr
    assert preview.stdout.startswith(
        f"refuse {name}.yaml: features.columns.kind: the store already holds it as category"
    )
    assert preview.stdout.count("\n") == 1
    refused = evergreen()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    (change, *_) = json.loads(evergreen("--plan", "--json").stdout)["plan"]
    assert (change["model"], change["action"], change["column"]) == (name, "refuse", "features.columns.kind")
    process = evergreen("--drop", f"{name}.kind", "--json")
    assert process.returncode == 0, process.stderr
    assert len(json.loads(process.stdout)["done"]) == 4
    assert evergreen().stdout == "nothing to do: all tables are there\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--drop", "kind"), 2), (("--drop", "nosuch.kind"), UnknownModel.exit_code), (("--plan", "--create"), 2)],
)
def test_the_command_refuses_invalid_arguments(
    arguments: tuple[str, ...], code: int, evergreen: Callable[..., Any]
) -> None:
    assert evergreen(*arguments).returncode == code
