"""Forgetting deletes an entity's rows in every place, changes no other row, and stops loads from adding them again."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from sqlalchemy import event, insert, select, text

from db import tombstones
from db.admin import bootstrap, erase
from db.log.prediction_ids import new_id
from db.log.writing import LOG_COLUMNS, LOG_NEW
from db.session import engine as real_engine
from db.session import session
from db.store.result_tables import appended
from db.tables import dead_letter, forgotten, prediction_feedback, snapshot
from pipelines.loading.loader import load_file
from pipelines.loading.rejects import rejects_path
from pipelines.maintenance.forget import PLACES, forget
from pipelines.runs import training_runs
from pipelines.runs.redact import redact_forgotten
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.verify import verify_snapshot
from pipelines.training import training_steps
from stack.example_data import worlds
from stack.programs.program import settings_environment
from tests.commands import evergreen
from tests.services import spec_like_credit_score
from utils.errors import IntegrityError
from utils.settings import RESULTS_DB

NOW = datetime(2026, 10, 2)
END = datetime(2026, 9, 30)


def load(rows, folder, spec, settings, *, now=NOW):
    rows.to_parquet(folder / "rows.parquet")
    return load_file(folder / "rows.parquet", spec=spec, settings=settings, caused_by="test", now=now)


def run_with_snapshot(spec, settings, *, run_id, name=None):
    """Start a training run and make its snapshot. Return the run. With `name`, it is a run of that replay."""
    training_runs.record_decision(
        settings, model=name or spec.name, cause="manual", reason="test", caused_by=run_id, now=NOW
    )
    training_runs.claim(settings, spec=spec, model=name, run_id=run_id, now=NOW, window_end=END)
    training_steps.run_step("extract", run_id, settings=settings, now=NOW)
    return training_runs.load_run(settings, run_id)


def log_prediction(settings, model, entity_id, *, at=END):
    """Log a prediction with feedback. Return its id."""
    prediction_id = new_id(at)
    row = {
        "prediction_id": str(prediction_id),
        "model": model,
        "version": 1,
        "role": "champion",
        "entity_id": entity_id,
        "features": "{}",
        "prediction": "Good",
        "latency_ms": 1.0,
        "instance": str(new_id(at)),
        "created_at": at,
        "logged_at": at,
    }
    with session(settings, "admin") as connection:
        connection.exec_driver_sql(LOG_NEW, tuple(row.get(name) for name in LOG_COLUMNS))
        feedback = {"prediction_id": prediction_id, "model": model, "actual": "Poor", "received_at": at}
        connection.execute(insert(prediction_feedback).values(**feedback))
    return prediction_id


def add_dead_letter(settings, model, entity_id):
    """Add a dead letter. Return its prediction id."""
    columns = {"model": model, "prediction_id": new_id(END), "entity_id": entity_id, "error": 1406, "dead_at": END}
    with session(settings, "admin") as connection:
        connection.execute(insert(dead_letter).values(**columns, log_row=[entity_id]))
    return columns["prediction_id"]


class Model:
    """A model whose places all hold rows of `entity` and of other entities."""

    def __init__(self, settings, folder, name):
        self.spec = spec_like_credit_score(name, folder)
        self.settings = settings.model_copy(update={"models_dir": folder, "home": folder / "home"})
        self.folder = folder
        bootstrap.migrate(settings, [self.spec.store])
        self.history = worlds.example_world("credit_score", end=END, customers=40)
        load(self.history, folder, self.spec, self.settings)
        self.entity = self.history["customer_id"].iloc[0]
        self.run = run_with_snapshot(self.spec, self.settings, run_id=f"{name}/run")
        self.replay_run = run_with_snapshot(self.spec, self.settings, run_id=f"{name}/replay", name=f"{name}-replay-1")
        self.prediction_ids = [log_prediction(settings, name, entity) for entity in (self.entity, "another")]
        self.dead_letter_ids = [add_dead_letter(settings, model, self.entity) for model in (name, "another_model")]
        log_prediction(settings, "another_model", self.entity)
        columns = pa.schema([("customer_id", pa.string()), ("prediction_id", pa.string())])
        with appended(settings, f"{name}_scores", model=name, columns=columns) as append:
            append(
                [
                    {"batch_id": new_id(END), "customer_id": entity, "prediction_id": str(id_)}
                    for entity, id_ in zip((self.entity, "another"), self.prediction_ids, strict=True)
                ]
            )
        self.rejects = rejects_path(self.settings, model=name, source="a file")
        self.rejects.parent.mkdir(parents=True)
        self.rejects.write_text(f"line,column,value,reason\n2,customer_id,{self.entity},x\n")

    def forget(self, **options):
        return forget(self.settings, spec=self.spec, entity_id=self.entity, caused_by="t", now=NOW, **options)

    def snapshot(self, run):
        with session(self.settings, "reader") as connection:
            return (
                connection.execute(select(snapshot).where(snapshot.c.snapshot_id == run.snapshot_id)).mappings().one()
            )

    def tombstones(self):
        with session(self.settings, "reader") as connection:
            rows = connection.execute(select(forgotten).where(forgotten.c.model == self.spec.name))
            return list(rows.mappings())

    def count(self, sql):
        with session(self.settings, "admin") as connection:
            return connection.scalar(text(sql), {"entity": self.entity, "model": self.spec.name})


@pytest.fixture
def model(settings, tmp_path, request):
    return Model(settings, tmp_path, f"forget_{abs(hash(request.node.name)) % 10**8}")


def test_the_rows_of_an_entity_are_deleted_in_every_place_and_no_other_rows(model):
    name, entity_rows = model.spec.name, int((model.history["customer_id"] == model.entity).sum())
    frame = read_snapshot(model.run.snapshot_id, settings=model.settings).frame
    rows_in_snapshot = int((frame["entity_id"] == model.entity).sum())
    expected = {
        "features": entity_rows,
        "labels": entity_rows,
        "latest": 1,
        "predictions": 1,
        "feedback": 1,
        "dead_letters": 1,
        "results": 1,
        "snapshots": 2 * rows_in_snapshot,
        "rejects": 1,
    }
    assert model.forget(dry_run=True).row_counts == expected
    assert model.tombstones() == []
    report = model.forget()
    assert tuple(report.row_counts) == PLACES
    assert report.row_counts == expected
    assert set(model.forget(dry_run=True).row_counts.values()) == {0}

    other_rows = len(model.history) - entity_rows
    for table, remaining_count in (
        (f"{name}_features", other_rows),
        (f"{name}_labels", other_rows),
        (f"{name}_latest", 39),
    ):
        assert model.count(f"SELECT COUNT(*) FROM evergreen_store.{table}") == remaining_count
        assert model.count(f"SELECT COUNT(*) FROM evergreen_store.{table} WHERE entity_id = :entity") == 0
    assert model.count("SELECT entity_id FROM prediction_log WHERE model = :model") == "another"
    assert model.count("SELECT COUNT(*) FROM prediction_feedback WHERE model = :model") == 1
    assert model.count(f"SELECT customer_id FROM {RESULTS_DB}.{name}_scores") == "another"
    assert model.count("SELECT COUNT(*) FROM prediction_log WHERE model = 'another_model' AND entity_id = :entity") > 0
    assert not model.rejects.exists()
    for run in (model.run, model.replay_run):
        remaining_frame = frame[frame["entity_id"] != model.entity].reset_index(drop=True)
        pd.testing.assert_frame_equal(read_snapshot(run.snapshot_id, settings=model.settings).frame, remaining_frame)
    assert list(model.settings.home.rglob("*.redacted")) == []


def test_a_snapshot_counts_its_redacted_rows_and_can_still_be_verified(model):
    row_before = model.snapshot(model.run)
    frame = read_snapshot(model.run.snapshot_id, settings=model.settings).frame
    for entity in frame["entity_id"].unique()[:2]:
        model.entity = entity
        model.forget()
    row = model.snapshot(model.run)
    remaining_frame = read_snapshot(model.run.snapshot_id, settings=model.settings).frame
    assert row["redacted_rows"] == len(frame) - len(remaining_frame) > 1
    assert (row["content_sha256"], row["row_count"]) == (row_before["content_sha256"], len(frame))
    verification = verify_snapshot(model.run.snapshot_id, settings=model.settings)
    assert (verification.read_from, verification.rows, verification.content_sha256) == (
        "store",
        len(remaining_frame),
        row["redacted_sha256"],
    )
    assert verification.note == f"redacted: {row['redacted_rows']:,} rows of forgotten entities"


def test_the_tombstone_holds_row_counts_and_not_the_id(model):
    model.forget()
    (row,) = model.tombstones()
    assert row["entity_sha256"] == tombstones.entity_sha256(model.spec.name, model.entity)
    assert set(row["found"]) == set(PLACES)
    assert (row["forgotten_at"], row["caused_by"]) == (NOW, "t")
    assert model.entity not in json.dumps({name: str(value) for name, value in row.items()})


def test_after_a_crash_a_second_try_finishes_the_deletion(model, monkeypatch):
    """The first try stops after 4 SQL statements, the next after 8, and so on, as if the process was killed."""

    class Killed(Exception):
        pass

    statements = 0

    def raise_after(limit):
        def count_statement(*_):
            nonlocal statements
            statements += 1
            if statements > limit:
                raise Killed

        return count_statement

    expected, tries = model.forget(dry_run=True).row_counts, 0
    while True:
        statements, tries = 0, tries + 1

        def engine(*args, limit=tries * 4, **options):
            own_engine = real_engine(*args, **options)
            event.listen(own_engine, "after_cursor_execute", raise_after(limit))
            return own_engine

        monkeypatch.setattr(erase, "engine", engine)
        try:
            report = model.forget()
        except Killed:
            continue
        break
    assert tries > 5
    monkeypatch.setattr(erase, "engine", real_engine)
    assert set(model.forget(dry_run=True).row_counts.values()) == {0}
    *_, last_tombstone = tombstones = model.tombstones()  # several, because one try stopped after its last change
    assert last_tombstone["found"] == report.row_counts
    assert sum(row["found"]["snapshots"] for row in tombstones) == expected["snapshots"]
    remaining_frame = read_snapshot(model.run.snapshot_id, settings=model.settings).frame
    assert model.snapshot(model.run)["redacted_rows"] == model.snapshot(model.run)["row_count"] - len(remaining_frame)


def test_a_second_try_also_replaces_a_snapshot_file_whose_row_was_already_updated(model, monkeypatch):
    original_replace = Path.replace

    def raise_if_redacted(self, target):
        if ".redacted" in self.name:
            raise KeyboardInterrupt
        return original_replace(self, target)

    monkeypatch.setattr(Path, "replace", raise_if_redacted)
    with pytest.raises(KeyboardInterrupt):
        model.forget()
    run_redacted_first, _ = sorted((model.run, model.replay_run), key=lambda run: run.snapshot_id)
    with pytest.raises(IntegrityError):
        read_snapshot(run_redacted_first.snapshot_id, settings=model.settings)
    monkeypatch.setattr(Path, "replace", original_replace)
    model.forget()
    for run in (model.run, model.replay_run):
        remaining_frame = read_snapshot(run.snapshot_id, settings=model.settings).frame
        assert model.entity not in set(remaining_frame["entity_id"])
        assert verify_snapshot(run.snapshot_id, settings=model.settings).rows == len(remaining_frame)


def test_two_entities_forgotten_at_the_same_time_are_both_deleted_from_every_snapshot(model):
    entities = list(model.history["customer_id"].unique()[:2])
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(forget, model.settings, spec=model.spec, entity_id=entity, caused_by="t", now=NOW)
            for entity in entities
        ]
        assert all(future.result().row_counts["snapshots"] for future in futures)
    for run in (model.run, model.replay_run):
        remaining_frame = read_snapshot(run.snapshot_id, settings=model.settings).frame
        assert not set(entities) & set(remaining_frame["entity_id"])
        assert model.snapshot(run)["redacted_rows"] == model.snapshot(run)["row_count"] - len(remaining_frame)


def test_a_damaged_snapshot_file_loses_the_rows_and_still_counts_as_damaged(model):
    file = model.settings.snapshots / model.snapshot(model.run)["path"]
    frame = pd.read_parquet(file)
    frame.assign(age=frame["age"] + 1).to_parquet(file)
    model.forget()
    assert model.entity not in set(pd.read_parquet(file)["entity_id"])
    with pytest.raises(IntegrityError):
        read_snapshot(model.run.snapshot_id, settings=model.settings)


def test_a_load_leaves_out_rows_from_before_the_tombstone_and_adds_later_rows(model):
    model.forget()
    rows_of_entity = model.history[model.history["customer_id"] == model.entity]
    report = load(model.history, model.folder, model.spec, model.settings)
    assert (report.features_added, report.labels_added, report.forgotten) == (0, 0, 2 * len(rows_of_entity))
    later_row = rows_of_entity.tail(1).assign(date=NOW + timedelta(seconds=1))
    report = load(later_row, model.folder, model.spec, model.settings, now=NOW + timedelta(days=1))
    assert (report.features_added, report.labels_added, report.forgotten) == (1, 1, 0)
    assert model.forget().row_counts["features"] == 1  # the later row; the entity is now forgotten a second time
    assert len(model.tombstones()) == 2
    report = load(later_row.assign(date=NOW), model.folder, model.spec, model.settings)
    assert (report.features_added, report.forgotten) == (0, 2)


def test_rows_of_a_forgotten_entity_without_time_are_always_left_out(new_schema, settings):
    schema = new_schema(timed=False)
    with erase.deleting(settings) as connection:
        erase.open_tombstone(connection, model=schema.model, entity_id="e1", places=PLACES, caused_by="t", now=NOW)
        table = pa.table({"entity_id": ["e1", "e2"], "event_time": pa.array([0, 0], pa.timestamp("us"))})
        remaining, left_out = tombstones.leave_out(tombstones.tombstones(connection, schema.model), schema.model, table)
    assert (remaining["entity_id"].to_pylist(), left_out) == (["e2"], 1)


def test_rows_are_left_out_only_up_to_the_time_of_forgetting_and_only_in_that_model(new_schema, settings):
    schema = new_schema()
    with erase.deleting(settings) as connection:
        table = make_rows()
        assert tombstones.leave_out(tombstones.tombstones(connection, schema.model), schema.model, table)[0] is table
        for moment in (NOW - timedelta(days=9), NOW):
            tombstone, _ = erase.open_tombstone(
                connection, model=schema.model, entity_id="e1", places=(), caused_by="t", now=moment
            )
            erase.record_counts(connection, tombstone, dict.fromkeys(PLACES, 0))
        remaining, left_out = tombstones.leave_out(tombstones.tombstones(connection, schema.model), schema.model, table)
        other_model = f"{schema.model}x"
        assert tombstones.leave_out(tombstones.tombstones(connection, other_model), other_model, table) == (table, 0)
    assert left_out == 2
    assert remaining["n"].to_pylist() == [2, 3]


def make_rows():
    times = [NOW - timedelta(days=1), NOW, NOW + timedelta(microseconds=1), NOW]
    return pa.table({"entity_id": ["e1", "e1", "e1", "e2"], "event_time": times, "n": [0, 1, 2, 3]})


def test_a_snapshot_made_during_a_forgetting_loses_the_rows_too(model):
    """The tombstone is written after the rows were read and before the row of the snapshot is written."""
    with erase.deleting(model.settings) as connection:
        erase.open_tombstone(
            connection, model=model.spec.name, entity_id=model.entity, places=PLACES, caused_by="t", now=NOW
        )
    assert redact_forgotten(model.settings, model.run.snapshot_id, model=model.spec.name) > 0
    remaining_snapshot = read_snapshot(model.run.snapshot_id, settings=model.settings)
    assert model.entity not in set(remaining_snapshot.frame["entity_id"])
    assert redact_forgotten(model.settings, model.run.snapshot_id, model=model.spec.name) == 0


def test_forgetting_waits_for_a_running_load(model):
    """The load has read the tombstones before this one was written, so forgetting must also delete the rows it adds."""
    lock = {"name": f"evergreen_load_{model.spec.name}"}
    with session(model.settings, "loader") as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(text("SELECT GET_LOCK(:name, 0)"), lock)
        future = pool.submit(model.forget)
        query = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT GET_LOCK%'"
        while not model.count(query):
            assert not future.done()
        assert model.count(f"SELECT COUNT(*) FROM evergreen_store.{model.spec.name}_features WHERE entity_id = :entity")
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), lock)
        assert future.result().row_counts["features"]


def test_the_log_is_read_in_chunks_and_progress_is_reported(model, monkeypatch):
    monkeypatch.setattr(erase, "CHUNK", 7)
    monkeypatch.setattr(erase, "DELETE_ROWS", 3)
    days = [END - timedelta(days=n % 5) for n in range(40)]
    for n, day in enumerate(days):
        log_prediction(model.settings, model.spec.name, model.entity if n % 2 else f"other-{n}", at=day)
    progress: list[Any] = []
    counts = model.forget(progress=progress.append).row_counts
    assert (counts["predictions"], counts["feedback"]) == (21, 21)
    assert progress == [7 * n for n in range(1, len(progress) + 1)]
    assert model.count("SELECT COUNT(*) FROM prediction_log WHERE model = :model") == 21


def test_the_command_asks_before_it_deletes_and_does_not_print_the_id(model):
    environment = settings_environment(model.settings, secrets=("db_admin_password", "db_pipeline_password"))
    command = ("forget", model.spec.name, model.entity)
    run = partial(evergreen, *command, environment={**os.environ, **environment}, stdin="n\n")
    without_yes = run()
    assert without_yes.returncode == 1
    assert "can't be undone" in without_yes.stderr
    dry_run = json.loads(run("--dry-run", "--json").stdout)
    assert dry_run["dry_run"]
    assert dry_run["found"]["predictions"] == 1
    process = run("--yes")
    assert process.returncode == 0, process.stderr
    assert "deleted: " in process.stdout
    assert "1 logged predictions" in process.stdout
    second_run = run("--yes")
    assert "no row of it was found" in second_run.stdout
    for output in (without_yes, process, second_run):
        assert model.entity not in output.stdout + output.stderr
