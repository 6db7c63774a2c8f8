"""Forgetting an entity: gone from every place, everybody else's rows as they were, and not loaded again."""

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
from db.admin import bootstrap
from db.admin import erase as rows
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


def load(world, folder, spec, settings, *, now=NOW):
    world.to_parquet(folder / "world.parquet")
    return load_file(folder / "world.parquet", spec=spec, settings=settings, caused_by="test", now=now)


def extracted(spec, settings, *, run_id, name=None):
    """A training run, or one of a replay called `name`, up to its snapshot."""
    training_runs.record_decision(
        settings, model=name or spec.name, cause="manual", reason="test", caused_by=run_id, now=NOW
    )
    training_runs.claim(settings, spec=spec, model=name, run_id=run_id, now=NOW, window_end=END)
    training_steps.do("extract", run_id, settings=settings, now=NOW)
    return training_runs.load_run(settings, run_id)


def log(settings, model, entity_id, *, at=END):
    """A logged prediction with feedback on it; returns its id."""
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
        told = {"prediction_id": prediction_id, "model": model, "actual": "Poor", "received_at": at}
        connection.execute(insert(prediction_feedback).values(**told))
    return prediction_id


def bury(settings, model, entity_id):
    """A row that the log refused."""
    given = {"model": model, "prediction_id": new_id(END), "entity_id": entity_id, "error": 1406, "dead_at": END}
    with session(settings, "admin") as connection:
        connection.execute(insert(dead_letter).values(**given, log_row=[entity_id]))
    return given["prediction_id"]


class Place:
    """A model with rows of `who` and of others in every place."""

    def __init__(self, settings, folder, name):
        self.spec = spec_like_credit_score(name, folder)
        self.settings = settings.model_copy(update={"models_dir": folder, "home": folder / "home"})
        self.folder = folder
        bootstrap.migrate(settings, [self.spec.store])
        self.world = worlds.example_world("credit_score", end=END, customers=40)
        load(self.world, folder, self.spec, self.settings)
        self.who = self.world["customer_id"].iloc[0]
        self.run = extracted(self.spec, self.settings, run_id=f"{name}/run")
        self.replayed = extracted(self.spec, self.settings, run_id=f"{name}/replay", name=f"{name}-replay-1")
        self.ids = [log(settings, name, entity) for entity in (self.who, "another")]
        self.dead = [bury(settings, model, self.who) for model in (name, "another_model")]
        self.foreign = log(settings, "another_model", self.who)
        columns = pa.schema([("customer_id", pa.string()), ("prediction_id", pa.string())])
        with appended(settings, f"{name}_scores", model=name, columns=columns) as append:
            append(
                [
                    {"batch_id": new_id(END), "customer_id": entity, "prediction_id": str(id_)}
                    for entity, id_ in zip((self.who, "another"), self.ids, strict=True)
                ]
            )
        self.rejects = rejects_path(self.settings, model=name, source="a file")
        self.rejects.parent.mkdir(parents=True)
        self.rejects.write_text(f"line,column,value,reason\n2,customer_id,{self.who},x\n")

    def forget(self, **further):
        return forget(self.settings, spec=self.spec, entity_id=self.who, caused_by="t", now=NOW, **further)

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
            return connection.scalar(text(sql), {"who": self.who, "model": self.spec.name})


@pytest.fixture
def place(settings, tmp_path, request):
    return Place(settings, tmp_path, f"forget_{abs(hash(request.node.name)) % 10**8}")


def test_an_entity_is_gone_from_every_place_and_nobody_else_is(place):
    name, theirs = place.spec.name, int((place.world["customer_id"] == place.who).sum())
    frame = read_snapshot(place.run.snapshot_id, settings=place.settings).frame
    in_snapshot = int((frame["entity_id"] == place.who).sum())
    expected = {
        "features": theirs,
        "labels": theirs,
        "latest": 1,
        "predictions": 1,
        "feedback": 1,
        "dead_letters": 1,
        "results": 1,
        "snapshots": 2 * in_snapshot,
        "rejects": 1,
    }
    assert place.forget(dry_run=True).found == expected
    assert place.tombstones() == []
    done = place.forget()
    assert tuple(done.found) == PLACES
    assert done.found == expected
    assert set(place.forget(dry_run=True).found.values()) == {0}

    others = len(place.world) - theirs
    for table, left in ((f"{name}_features", others), (f"{name}_labels", others), (f"{name}_latest", 39)):
        assert place.count(f"SELECT COUNT(*) FROM evergreen_store.{table}") == left
        assert place.count(f"SELECT COUNT(*) FROM evergreen_store.{table} WHERE entity_id = :who") == 0
    assert place.count("SELECT entity_id FROM prediction_log WHERE model = :model") == "another"
    assert place.count("SELECT COUNT(*) FROM prediction_feedback WHERE model = :model") == 1
    assert place.count(f"SELECT customer_id FROM {RESULTS_DB}.{name}_scores") == "another"
    assert place.count("SELECT COUNT(*) FROM prediction_log WHERE model = 'another_model' AND entity_id = :who") > 0
    assert not place.rejects.exists()
    for run in (place.run, place.replayed):
        kept = frame[frame["entity_id"] != place.who].reset_index(drop=True)
        pd.testing.assert_frame_equal(read_snapshot(run.snapshot_id, settings=place.settings).frame, kept)
    assert list(place.settings.home.rglob("*.redacted")) == []


def test_a_snapshot_says_how_many_rows_are_gone_and_the_store_still_gives_what_is_left(place):
    before = place.snapshot(place.run)
    frame = read_snapshot(place.run.snapshot_id, settings=place.settings).frame
    for who in frame["entity_id"].unique()[:2]:
        place.who = who
        place.forget()
    row = place.snapshot(place.run)
    left = read_snapshot(place.run.snapshot_id, settings=place.settings).frame
    assert row["redacted_rows"] == len(frame) - len(left) > 1
    assert (row["content_sha256"], row["row_count"]) == (before["content_sha256"], len(frame))
    verified = verify_snapshot(place.run.snapshot_id, settings=place.settings)
    assert (verified.read_from, verified.rows, verified.content_sha256) == ("store", len(left), row["redacted_sha256"])
    assert verified.note == f"redacted: {row['redacted_rows']:,} rows of forgotten entities"


def test_the_tombstone_holds_counts_and_never_the_id(place):
    place.forget()
    (row,) = place.tombstones()
    assert row["entity_sha256"] == tombstones.entity_sha256(place.spec.name, place.who)
    assert set(row["found"]) == set(PLACES)
    assert (row["forgotten_at"], row["caused_by"]) == (NOW, "t")
    assert place.who not in json.dumps({name: str(value) for name, value in row.items()})


def test_what_a_crash_left_undone_is_finished_by_doing_it_again(place, monkeypatch):
    """Broken off at each of its statements in turn: on the server's side nothing tells that from a killed process."""

    class Killed(Exception):
        pass

    steps = 0

    def broken_after(most):
        def count(*_):
            nonlocal steps
            steps += 1
            if steps > most:
                raise Killed

        return count

    expected, tries = place.forget(dry_run=True).found, 0
    while True:
        steps, tries = 0, tries + 1

        def engine(*args, most=tries * 4, **further):
            made = real_engine(*args, **further)
            event.listen(made, "after_cursor_execute", broken_after(most))
            return made

        monkeypatch.setattr(rows, "engine", engine)
        try:
            done = place.forget()
        except Killed:
            continue
        break
    assert tries > 5
    monkeypatch.setattr(rows, "engine", real_engine)
    assert set(place.forget(dry_run=True).found.values()) == {0}
    *_, last = tombstones = place.tombstones()  # more than one: a try was broken off after all was done
    assert last["found"] == done.found
    assert sum(row["found"]["snapshots"] for row in tombstones) == expected["snapshots"]
    left = read_snapshot(place.run.snapshot_id, settings=place.settings).frame
    assert place.snapshot(place.run)["redacted_rows"] == place.snapshot(place.run)["row_count"] - len(left)


def test_a_snapshot_whose_row_was_written_and_its_file_not_is_finished_too(place, monkeypatch):
    original = Path.replace

    def killed(self, target):
        if ".redacted" in self.name:
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        place.forget()
    first, _ = sorted((place.run, place.replayed), key=lambda run: run.snapshot_id)
    with pytest.raises(IntegrityError):
        read_snapshot(first.snapshot_id, settings=place.settings)
    monkeypatch.setattr(Path, "replace", original)
    place.forget()
    for run in (place.run, place.replayed):
        left = read_snapshot(run.snapshot_id, settings=place.settings).frame
        assert place.who not in set(left["entity_id"])
        assert verify_snapshot(run.snapshot_id, settings=place.settings).rows == len(left)


def test_two_that_are_forgotten_at_once_are_both_gone_from_every_snapshot(place):
    both = list(place.world["customer_id"].unique()[:2])
    with ThreadPoolExecutor(2) as pool:
        told = [
            pool.submit(forget, place.settings, spec=place.spec, entity_id=who, caused_by="t", now=NOW) for who in both
        ]
        assert all(each.result().found["snapshots"] for each in told)
    for run in (place.run, place.replayed):
        left = read_snapshot(run.snapshot_id, settings=place.settings).frame
        assert not set(both) & set(left["entity_id"])
        assert place.snapshot(run)["redacted_rows"] == place.snapshot(run)["row_count"] - len(left)


def test_a_damaged_snapshot_loses_the_rows_and_stays_known_as_damaged(place):
    file = place.settings.snapshots / place.snapshot(place.run)["path"]
    frame = pd.read_parquet(file)
    frame.assign(age=frame["age"] + 1).to_parquet(file)
    place.forget()
    assert place.who not in set(pd.read_parquet(file)["entity_id"])
    with pytest.raises(IntegrityError):
        read_snapshot(place.run.snapshot_id, settings=place.settings)


def test_a_load_leaves_out_what_was_before_and_takes_what_comes_after(place):
    place.forget()
    theirs = place.world[place.world["customer_id"] == place.who]
    report = load(place.world, place.folder, place.spec, place.settings)
    assert (report.features_added, report.labels_added, report.forgotten) == (0, 0, 2 * len(theirs))
    later = theirs.tail(1).assign(date=NOW + timedelta(seconds=1))
    report = load(later, place.folder, place.spec, place.settings, now=NOW + timedelta(days=1))
    assert (report.features_added, report.labels_added, report.forgotten) == (1, 1, 0)
    assert place.forget().found["features"] == 1  # it came back, and is forgotten again
    assert len(place.tombstones()) == 2
    report = load(later.assign(date=NOW), place.folder, place.spec, place.settings)
    assert (report.features_added, report.forgotten) == (0, 2)


def test_data_without_time_stays_away_altogether(new_schema, settings):
    schema = new_schema(timed=False)
    with rows.deleting(settings) as connection:
        rows.open_tombstone(connection, model=schema.model, entity_id="e1", places=PLACES, caused_by="t", now=NOW)
        table = pa.table({"entity_id": ["e1", "e2"], "event_time": pa.array([0, 0], pa.timestamp("us"))})
        kept, left_out = tombstones.leave_out(tombstones.tombstones(connection, schema.model), schema.model, table)
    assert (kept["entity_id"].to_pylist(), left_out) == (["e2"], 1)


def test_rows_are_left_out_up_to_the_moment_of_forgetting_and_only_those_of_the_model(new_schema, settings):
    schema = new_schema()
    with rows.deleting(settings) as connection:
        table = some_rows()
        assert tombstones.leave_out(tombstones.tombstones(connection, schema.model), schema.model, table)[0] is table
        for moment in (NOW - timedelta(days=9), NOW):
            tombstone, _ = rows.open_tombstone(
                connection, model=schema.model, entity_id="e1", places=(), caused_by="t", now=moment
            )
            rows.record_found(connection, tombstone, dict.fromkeys(PLACES, 0))
        kept, left_out = tombstones.leave_out(tombstones.tombstones(connection, schema.model), schema.model, table)
        other = f"{schema.model}x"
        assert tombstones.leave_out(tombstones.tombstones(connection, other), other, table) == (table, 0)
    assert left_out == 2
    assert kept["n"].to_pylist() == [2, 3]


def some_rows():
    times = [NOW - timedelta(days=1), NOW, NOW + timedelta(microseconds=1), NOW]
    return pa.table({"entity_id": ["e1", "e1", "e1", "e2"], "event_time": times, "n": [0, 1, 2, 3]})


def test_a_snapshot_that_was_read_while_its_entity_was_forgotten_loses_its_rows(place):
    """The tombstone came after the rows were read, and forgetting looked for snapshots before this one had its row."""
    with rows.deleting(place.settings) as connection:
        rows.open_tombstone(
            connection, model=place.spec.name, entity_id=place.who, places=PLACES, caused_by="t", now=NOW
        )
    assert redact_forgotten(place.settings, place.run.snapshot_id, model=place.spec.name) > 0
    left = read_snapshot(place.run.snapshot_id, settings=place.settings)
    assert place.who not in set(left.frame["entity_id"])
    assert redact_forgotten(place.settings, place.run.snapshot_id, model=place.spec.name) == 0


def test_a_load_that_is_under_way_is_waited_for(place):
    """It has looked for tombstones before there was one; what it adds is deleted too."""
    lock = {"name": f"evergreen_load_{place.spec.name}"}
    with session(place.settings, "loader") as connection, ThreadPoolExecutor(1) as other:
        connection.execute(text("SELECT GET_LOCK(:name, 0)"), lock)
        forgetting = other.submit(place.forget)
        waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT GET_LOCK%'"
        while not place.count(waiting):
            assert not forgetting.done()
        assert place.count(f"SELECT COUNT(*) FROM evergreen_store.{place.spec.name}_features WHERE entity_id = :who")
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), lock)
        assert forgetting.result().found["features"]


def test_the_log_is_read_in_chunks_and_told_of(place, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 7)
    monkeypatch.setattr(rows, "DELETE_ROWS", 3)
    days = [END - timedelta(days=n % 5) for n in range(40)]
    for n, day in enumerate(days):
        log(place.settings, place.spec.name, place.who if n % 2 else f"other-{n}", at=day)
    told: list[Any] = []
    found = place.forget(progress=told.append).found
    assert (found["predictions"], found["feedback"]) == (21, 21)
    assert told == [7 * n for n in range(1, len(told) + 1)]
    assert place.count("SELECT COUNT(*) FROM prediction_log WHERE model = :model") == 21


def test_the_command_asks_counts_and_forgets_without_a_word_of_the_id(place):
    given = settings_environment(place.settings, secrets=("db_admin_password", "db_pipeline_password"))
    command = ("forget", place.spec.name, place.who)
    run = partial(evergreen, *command, environment={**os.environ, **given}, stdin="n\n")
    refused = run()
    assert refused.returncode == 1
    assert "can't be undone" in refused.stderr
    counted = json.loads(run("--dry-run", "--json").stdout)
    assert counted["dry_run"]
    assert counted["found"]["predictions"] == 1
    done = run("--yes")
    assert done.returncode == 0, done.stderr
    assert "deleted: " in done.stdout
    assert "1 logged predictions" in done.stdout
    again = run("--yes")
    assert "no row of it was found" in again.stdout
    for said in (refused, done, again):
        assert place.who not in said.stdout + said.stderr
