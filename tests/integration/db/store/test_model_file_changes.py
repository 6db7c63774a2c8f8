"""`evergreen migrate` after a change of the model file: planned, applied, refused; old snapshots stay readable."""

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
Changed = Callable[[dict[str, Any]], Any]


def spec_of(file: dict[str, Any], change: Changed | None = None) -> ModelSpec:
    """The model file, or a copy after `change`."""
    copied = copy.deepcopy(file)
    if change:
        change(copied)
    return ModelSpec.parse(copied, file="a test's file")


def features(file: dict[str, Any]) -> dict[str, Any]:
    return file["features"]["columns"]


def add_extra(file: dict[str, Any]) -> None:
    features(file)["extra"] = {"type": "numeric"}


def kind_to_text(file: dict[str, Any]) -> None:
    features(file)["kind"] = {"type": "text"}


def without_kind(file: dict[str, Any]) -> None:
    del features(file)["kind"]


def retyped(column: str, kind: str) -> Changed:
    return lambda file: features(file).update({column: {"type": kind}})


def timeless(file: dict[str, Any]) -> None:
    file["source"] = {}
    del file["features"]["max_age"]


def regression(file: dict[str, Any]) -> None:
    file["task"] = "regression"
    del file["label"]["classes"]


@pytest.fixture
def file(settings: Settings) -> dict[str, Any]:
    """A model file of a name of its own, with its tables made."""
    made = {"name": f"m{secrets.token_hex(4)}", **copy.deepcopy(FILE)}
    bootstrap.migrate(settings, [spec_of(made).store])
    return made


def load(spec: ModelSpec, settings: Settings, folder: Path) -> Any:
    ROWS.to_csv(folder / "rows.csv", index=False)
    return load_file(folder / "rows.csv", spec=spec, settings=settings, caused_by="test", now=NOW)


@pytest.fixture
def loaded(file: dict[str, Any], settings: Settings, tmp_path: Path) -> dict[str, Any]:
    load(spec_of(file), settings, tmp_path)
    return file


def trained_on(spec: ModelSpec, settings: Settings) -> Run:
    """A run of `spec` with its snapshot taken."""
    run_id = f"t/{secrets.token_hex(4)}"
    training_runs.record_decision(settings, model=spec.name, cause="manual", reason="a test", caused_by=run_id, now=NOW)
    run = training_runs.claim(settings, spec=spec, run_id=run_id, now=NOW, window_end=NOW)
    extract(run, settings=settings, now=NOW)
    return training_runs.load_run(settings, run_id)


def frame_of(run: Run, settings: Settings) -> pd.DataFrame:
    """The run's rows, read from the store again."""
    frame: pd.DataFrame = pa.concat_tables(read_rows(run, settings=settings)).to_pandas()
    return frame


def planned(settings: Settings, spec: ModelSpec, *drop: str) -> list[str]:
    return [change.planned for change in bootstrap.plan(settings, [spec.store], drop={spec.name: set(drop)})]


@pytest.mark.parametrize("change", [add_extra, kind_to_text, without_kind], ids=["added", "widened", "removed"])
def test_a_snapshot_of_the_old_file_stays_readable_from_its_file_and_from_the_store(
    change: Changed, loaded: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    run = trained_on(spec_of(loaded), settings)
    changed = spec_of(loaded, change)
    bootstrap.migrate(settings, [changed.store])
    load(changed, settings, tmp_path)  # later rows of the new file
    assert run.snapshot_id
    kept = read_snapshot(run.snapshot_id, settings=settings)
    assert len(kept.frame) == len(ROWS)
    assert kept.frame["kind"].notna().sum() == ROWS["kind"].notna().sum()
    assert content_hash(read_rows(run, settings=settings)) == kept.manifest.content_sha256
    after = trained_on(changed, settings)
    assert set(next(read_rows(after, settings=settings)).column_names) == {
        *("entity_id", "event_time", "outcome"),
        *changed.features.columns,
    }


def test_added_columns_and_widened_types_are_planned_then_done_and_then_there(
    loaded: dict[str, Any], settings: Settings
) -> None:
    spec = spec_of(loaded, lambda file: [change(file) for change in (add_extra, kind_to_text)])
    store = f"{STORE_DB}.{spec.name}"
    shown: list[Any] = []
    expected = [
        f"column kind of {store}_features from category to text",
        f"column extra to {store}_features",
        f"column kind of {store}_latest from category to text",
        f"column extra to {store}_latest",
    ]
    verbs = ("widen", "add", "widen", "add")
    assert planned(settings, spec) == [f"{verb} {rest}" for verb, rest in zip(verbs, expected, strict=True)]
    done = bootstrap.migrate(settings, [spec.store], show=shown.extend)
    assert [change.planned for change in shown] == [f"{v} {rest}" for v, rest in zip(verbs, expected, strict=True)]
    assert done == [f"{verb} {rest}" for verb, rest in zip(("widened", "added") * 2, expected, strict=True)]
    assert bootstrap.migrate(settings, [spec.store]) == planned(settings, spec) == []


def test_a_plan_changes_nothing(loaded: dict[str, Any], settings: Settings) -> None:
    spec = spec_of(loaded, add_extra)
    assert planned(settings, spec) == planned(settings, spec) != []


def test_a_removed_feature_keeps_its_values_and_has_them_when_it_comes_back(
    loaded: dict[str, Any], settings: Settings
) -> None:
    removed = spec_of(loaded, without_kind)
    (line,) = planned(settings, removed)
    assert line.startswith(f"keep column kind of {STORE_DB}.{removed.name}_features")
    assert bootstrap.migrate(settings, [removed.store]) == []
    rows = frame_of(trained_on(spec_of(loaded), settings), settings)
    assert rows["kind"].notna().sum() == ROWS["kind"].notna().sum()


def test_a_column_is_dropped_only_by_name_and_the_plan_counts_what_goes(
    loaded: dict[str, Any], settings: Settings
) -> None:
    run = trained_on(spec_of(loaded), settings)
    removed = spec_of(loaded, without_kind)
    first, second = planned(settings, removed, "kind")
    assert first == (
        f"drop column kind of {STORE_DB}.{removed.name}_features: 40 rows hold a value of it; 1 snapshot used it and"
        " can no longer be read again from the store, only from their files"
    )
    assert second == f"drop column kind of {STORE_DB}.{removed.name}_latest"
    bootstrap.migrate(settings, [removed.store], drop={removed.name: {"kind"}})
    assert planned(settings, removed) == []
    assert run.snapshot_id
    assert len(read_snapshot(run.snapshot_id, settings=settings).frame) == len(ROWS)
    with pytest.raises(NotFound):
        read_rows(run, settings=settings)


@pytest.mark.parametrize(("column", "kind"), [("kind", "numeric"), ("note", "numeric"), ("amount", "categorical")])
def test_a_type_that_would_read_old_values_otherwise_is_refused_and_made_anew_where_named(
    column: str, kind: str, loaded: dict[str, Any], settings: Settings
) -> None:
    spec = spec_of(loaded, retyped(column, kind))
    with pytest.raises(SpecInvalid, match=rf"features\.columns\.{column}: .*--drop {spec.name}\.{column}"):
        bootstrap.migrate(settings, [spec.store])
    assert len(frame_of(trained_on(spec_of(loaded), settings), settings)) == len(ROWS)  # untouched
    bootstrap.migrate(settings, [spec.store], drop={spec.name: {column}})
    rows = frame_of(trained_on(spec, settings), settings)
    assert rows[column].isna().all()
    assert rows.drop(columns=column).notna().any().all()
    assert planned(settings, spec) == []


def test_a_column_for_text_takes_categories_as_it_is(loaded: dict[str, Any], settings: Settings) -> None:
    assert planned(settings, spec_of(loaded, retyped("note", "categorical"))) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (timeless, "source.event_time: the store's rows have a time"),
        (regression, "task: the label outcome: the store already holds it as category, not as number"),
        (lambda file: file.update(entity="city"), "entity: the store's rows are those of shop"),
        (lambda file: file["label"].update(column="result"), "label.column: the store holds the label as outcome"),
    ],
    ids=["time", "task", "entity", "label"],
)
def test_what_would_give_stored_rows_another_meaning_is_refused_in_one_line_until_they_are_none(
    change: Changed, told: str, file: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    spec, original = spec_of(file, change), spec_of(file)
    done = bootstrap.migrate(settings, [spec.store])
    assert done == [f"made anew the tables of {spec.name}: they hold no rows"]
    assert bootstrap.migrate(settings, [spec.store]) == []
    bootstrap.migrate(settings, [original.store])  # and back
    load(original, settings, tmp_path)
    with pytest.raises(SpecInvalid) as refused:
        bootstrap.migrate(settings, [spec.store])
    assert str(refused.value).startswith(f"{spec.name}.yaml: {told}")
    assert "\n" not in str(refused.value)
    assert bootstrap.migrate(settings, [original.store]) == []


def test_one_refused_model_keeps_the_others_as_they_are(
    loaded: dict[str, Any], new_schema: Callable[..., Any], settings: Settings
) -> None:
    schema = new_schema()
    other = replace(schema, features=(*schema.features, Column("extra", "number")))
    refused = spec_of(loaded, retyped("amount", "text")).store
    with pytest.raises(SpecInvalid):
        bootstrap.migrate(settings, [other, refused])
    with session(settings, "reader", STORE_DB) as connection:
        columns = connection.scalars(text(f"SHOW COLUMNS FROM {other.features_table}")).all()
    assert "extra" not in columns


def test_tables_made_before_stores_noted_whose_rows_they_hold_get_the_note(
    loaded: dict[str, Any], settings: Settings
) -> None:
    schema = spec_of(loaded).store
    with session(settings, "admin", STORE_DB) as connection:
        for table in (schema.features_table, schema.labels_table):
            connection.execute(text(f"ALTER TABLE {table} COMMENT ''"))
    notes = [f"noted entity: shop at {STORE_DB}.{t}" for t in (schema.features_table, schema.labels_table)]
    assert bootstrap.migrate(settings, [schema]) == notes
    assert bootstrap.migrate(settings, [schema]) == []


@pytest.mark.parametrize("named", ["amount", "outcome", "event_time", "nothing"])
def test_only_a_column_that_is_not_used_can_be_dropped(named: str, loaded: dict[str, Any], settings: Settings) -> None:
    with pytest.raises((SpecInvalid, NotFound), match=named):
        bootstrap.migrate(settings, [spec_of(loaded, without_kind).store], drop={loaded["name"]: {named}})


@pytest.mark.parametrize("busy", ["load", "reader"])
def test_a_column_is_not_dropped_under_a_load_or_a_reader(
    busy: str, loaded: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WAIT_SECONDS", 1)
    schema = spec_of(loaded, without_kind).store
    hold = {
        "load": f"SELECT GET_LOCK('{load_lock(schema.model)}', 1)",
        "reader": f"SELECT COUNT(*) FROM {schema.features_table}",
    }
    with session(settings, "loader", STORE_DB) as other:
        assert other.scalar(text(hold[busy]))
        with pytest.raises(StackError, match="try again"):
            bootstrap.migrate(settings, [schema], drop={schema.model: {"kind"}})
    done = bootstrap.migrate(settings, [schema], drop={schema.model: {"kind"}})
    assert [line.split(" of ")[0] for line in done] == ["dropped column kind"] * 2


def test_two_migrations_at_a_time_both_end_well_and_do_the_work_once(
    loaded: dict[str, Any], settings: Settings
) -> None:
    schema = spec_of(loaded, add_extra).store
    with ThreadPoolExecutor(2) as both:
        done = list(both.map(lambda _: bootstrap.migrate(settings, [schema]), range(2)))
    assert sorted(len(lines) for lines in done) == [0, 2]


@pytest.fixture
def evergreen(loaded: dict[str, Any], settings: Settings, tmp_path: Path) -> Callable[..., Any]:
    """The command, without a terminal, over a folder with this one model file."""
    (tmp_path / f"{loaded['name']}.yaml").write_text(yaml.safe_dump(loaded))
    here = settings.model_copy(update={"models_dir": tmp_path})
    environment = {**os.environ, **settings_environment(here, secrets=("db_admin_password",))}
    return partial(commands.evergreen, "migrate", environment=environment)


def test_the_command_shows_the_plan_refuses_in_one_line_and_drops_what_is_named(
    evergreen: Callable[..., Any], loaded: dict[str, Any], tmp_path: Path
) -> None:
    name, path = loaded["name"], tmp_path / f"{loaded['name']}.yaml"
    features(loaded)["kind"] = {"type": "numeric"}
    path.write_text(yaml.safe_dump(loaded))
    shown = evergreen("--plan")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"refuse {name}.yaml: features.columns.kind: the store already holds it as category")
    assert shown.stdout.count("\n") == 1
    refused = evergreen()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    (before, *_) = json.loads(evergreen("--plan", "--json").stdout)["plan"]
    assert (before["model"], before["action"], before["column"]) == (name, "refuse", "features.columns.kind")
    done = evergreen("--drop", f"{name}.kind", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["done"]) == 4
    assert evergreen().stdout == "nothing to do: all tables are there\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--drop", "kind"), 2), (("--drop", "nosuch.kind"), UnknownModel.exit_code), (("--plan", "--create"), 2)],
)
def test_the_command_refuses_what_it_can_not_mean(
    arguments: tuple[str, ...], code: int, evergreen: Callable[..., Any]
) -> None:
    assert evergreen(*arguments).returncode == code
