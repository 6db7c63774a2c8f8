"""Monitoring on a real MariaDB and MLflow: from logged predictions to a decision; every step is also done twice."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
import yaml
from sqlalchemy import RowMapping, select, text, update

from db import history
from db.admin import bootstrap
from db.history import deployments, trainings
from db.history import window_rows as rows
from db.log.prediction_ids import new_id
from db.log.writing import LOG_COLUMNS
from db.session import session
from db.store.appending import append
from db.tables import (
    drift_result,
    performance_result,
    prediction_log,
    promotion_decision,
    retrain_decision,
    training_run,
    window_profile,
)
from pipelines import registry
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.deployment import promote, rollout
from pipelines.loading.loader import load_file
from pipelines.monitoring import evidence, monitoring_steps
from pipelines.runs import training_runs
from pipelines.spec import ModelSpec, find_spec
from pipelines.training import training_steps
from stack.demo.webhook import webhook
from stack.example_data import worlds
from tests.integration.conftest import END, Small
from utils.errors import NothingToDo
from utils.settings import Settings

DAY = timedelta(days=1)
ROWS = 400  # of a window that has enough


@dataclass(frozen=True, slots=True)
class Watched:
    """A model that serves, and a world to draw requests from: the last statement of each of 600 customers."""

    settings: Settings
    spec: ModelSpec
    version: int
    world: pd.DataFrame


def model_of(small: Small, folder: Path, name: str, **monitoring: Any) -> tuple[Settings, ModelSpec]:
    """A model like `small` under another name, with its world loaded."""
    file = yaml.safe_load((small.settings.models_dir / "small_score.yaml").read_text())
    file |= {"name": name, "monitoring": {"window": "1d", "min_rows": 300, **monitoring}}
    file["retrain"] = {"cooldown": "0s", "new_labels": 100_000, "max_age": "365d"}
    file["gates"] |= {"min_rows": 100}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(file))
    settings = small.settings.model_copy(update={"models_dir": folder})
    spec = find_spec(folder, name)
    bootstrap.migrate(settings, [spec.store])
    path = small.settings.models_dir / "world.parquet"
    load_file(path, spec=spec, settings=settings, caused_by="test", now=END + timedelta(hours=1))
    return settings, spec


def train(settings: Settings, spec: ModelSpec, run_id: str, *, window_end: datetime, now: datetime) -> str:
    training_runs.record_decision(settings, model=spec.name, cause="manual", reason="a test", caused_by=run_id, now=now)
    training_runs.claim(settings, spec=spec, run_id=run_id, now=now, window_end=window_end)
    for name in training_steps.STEPS:
        training_steps.do(name, run_id, settings=settings, now=now)
    return training_runs.verdict(settings, run_id)


@dataclass(frozen=True, slots=True)
class Trained:
    """A training until END and the files of the version that serves for it."""

    run: RowMapping
    folder: Path
    tags: dict[str, str]


@pytest.fixture(scope="module")
def trained(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings, spec = model_of(small, tmp_path_factory.mktemp("trained"), "watched")
    assert train(settings, spec, "watched/first", window_end=END, now=END) == "promote"
    claimed = promote.claim(settings, model=spec.name, run_id="watched/deploy", now=END)
    version = promote.promote(settings, decision_id=claimed["decision"])
    folder = tmp_path_factory.mktemp("bundle")
    registry.download(settings, spec.name, version, folder)
    with session(settings, "pipeline") as connection:
        run = trainings.find_run(connection, "watched/first")
    assert run is not None
    return Trained(run, folder, registry.version_tags(settings, spec.name, version))


@pytest.fixture
def watched(small: Small, trained: Trained, tmp_path: Path) -> Watched:
    """A model of its own that serves what was trained until END; nothing of it is logged yet."""
    name = f"watched_{uuid4().hex[:8]}"
    settings, spec = model_of(small, tmp_path, name)
    run = {**trained.run, "run_id": f"{name}/first", "model": name, "commit_seq": 1}
    tags = {**trained.tags, "run_id": run["run_id"]}
    with session(settings, "pipeline") as connection:
        history.add(connection, training_run, run)
    version = registry.register(
        settings, model=name, mlflow_run_id=run["mlflow_run_id"], folder=trained.folder, tags=tags, description=""
    )
    rollout.roll_out(settings, model=name, version=version, caused_by="test", reason="a test", now=END)
    world = worlds.example_world("credit_score", end=END, customers=600)
    return Watched(settings, spec, version, world.groupby("customer_id").tail(1).reset_index(drop=True))


def requests(watched: Watched, seed: int, count: int = ROWS) -> pd.DataFrame:
    return watched.world.sample(count, random_state=seed).reset_index(drop=True)


def richer(rows: pd.DataFrame) -> pd.DataFrame:
    """The world's incomes rise by a good half of their standard deviation."""
    factor = dict.fromkeys(("annual_income", "monthly_inhand_salary", "monthly_balance"), 1.4)
    return rows.assign(**{name: rows[name] * by for name, by in factor.items()})


def answer(watched: Watched, asked: pd.DataFrame, day: datetime) -> list[str]:
    """Log predictions for `asked`, spread over `day`, as a service does; returns their ids."""
    spec, features = watched.spec, list(watched.spec.features.columns)
    bundle = registry.load(watched.settings, spec.name, watched.version)
    scores = score(bundle.model, pool_from_frame(asked, spec=spec, label=False), spec=spec)
    told = json.loads(asked[features].to_json(orient="records"))
    logged = []
    for place, (entity, given) in enumerate(zip(asked["customer_id"], told, strict=True)):
        moment = day + place * DAY / len(asked)
        assert scores.probabilities is not None
        by_class = dict(zip(spec.label.classes, scores.probabilities[place].tolist(), strict=True))
        warnings = [f"missing: {name}" for name, value in given.items() if value is None]
        values = (
            str(new_id(moment)),
            spec.name,
            watched.version,
            "champion",
            entity,
            json.dumps(given),
            scores.predictions[place],
            max(by_class.values()),
            json.dumps(by_class),
            json.dumps(warnings),
            1.0,
            str(uuid4()),
            moment,
            moment,
        )
        logged.append(dict(zip(LOG_COLUMNS, values, strict=True)))
    statement = text(f"INSERT INTO prediction_log VALUES ({', '.join(f':{name}' for name in LOG_COLUMNS)})")
    with session(watched.settings, "api") as connection:
        connection.execute(statement, logged)
    return [row["prediction_id"] for row in logged]


def label(watched: Watched, asked: pd.DataFrame, day: datetime, *, features: bool = False) -> None:
    """Labels for `asked`, dated by the day, arrive a day later; with their features where a training shall see them."""
    dated = asked.rename(columns={"customer_id": "entity_id"}).assign(event_time=day)
    columns = ["entity_id", "event_time"]
    append(
        watched.settings,
        watched.spec.store,
        labels=dated[[*columns, "credit_score"]],
        features=dated[[*columns, *watched.spec.features.columns]] if features else None,
        source="test",
        content_sha256=uuid4().hex,
        caused_by="test",
        now=day + DAY,
        available_at_given=False,
    )


def look(watched: Watched, until: datetime, caused_by: str = "") -> RowMapping:
    """A monitoring run, every step of it done twice."""
    now = until + timedelta(minutes=1)
    for _ in range(2):
        for do in monitoring_steps.STEPS.values():
            do(watched.settings, watched.spec, until=until, now=now)
    caused_by = caused_by or f"monitoring/{until}"
    first = monitoring_steps.decide(watched.settings, watched.spec, caused_by=caused_by, now=now)
    assert monitoring_steps.decide(watched.settings, watched.spec, caused_by=caused_by, now=now) == first
    return first


def all_of(watched: Watched, table: Any) -> list[RowMapping]:
    with session(watched.settings, "pipeline") as connection:
        rows = select(table).where(table.c.model == watched.spec.name).order_by(table.c.id)
        return list(connection.execute(rows).mappings())


def test_an_unchanged_world_is_counted_once_measured_and_left_alone(watched: Watched) -> None:
    for number in range(3):
        asked = requests(watched, number)
        answer(watched, asked, END + number * DAY)
        label(watched, asked, END + number * DAY)
    decision = look(watched, END + 4 * DAY)
    assert (decision["action"], decision["cause"]) == ("hold", "no_reason"), decision["reason"]
    counted = all_of(watched, window_profile)
    assert [row["row_count"] for row in counted] == [ROWS, ROWS, ROWS, 0]
    assert all(sum(row["counts"]["age"]) == ROWS for row in counted[:3])
    assert [row["drifted"] for row in all_of(watched, drift_result)] == [False] * 3
    measured = all_of(watched, performance_result)
    assert [row["label_count"] for row in measured] == [ROWS, ROWS, ROWS]
    assert not any(row["lost"] for row in measured)
    assert all(row["low"] < row["value"] < row["high"] and row["threshold"] < row["judged"] for row in measured)


def test_drift_is_found_decided_on_once_and_kept_until_a_training_takes_it(watched: Watched) -> None:
    """Killed between row and event, between event and claim, and after the claim: nothing lost, nothing twice."""
    settings, name = watched.settings, watched.spec.name
    for number in range(2):
        asked = richer(requests(watched, number))
        answer(watched, asked, END + number * DAY)
        label(watched, asked, END + number * DAY, features=True)
    now = END + 3 * DAY
    decision = look(watched, now)
    assert (decision["action"], decision["cause"]) == ("retrain", "drift"), decision["reason"]
    found = all_of(watched, drift_result)
    assert [row["drifted"] for row in found] == [True, True]
    assert {"annual_income", "monthly_inhand_salary"} <= set(found[0]["evidence"]["drifted"])
    # Killed before the event: the next run decides nothing new, and announces the row that is there.
    assert look(watched, now, "monitoring/next")["cause"] == "under_way"
    assert monitoring_steps.due(settings, model=name).startswith(f"decision {decision['id']}, drift")
    # The event came; the training claims, and dies without a word.
    training_runs.claim(settings, spec=watched.spec, run_id=f"{name}_training/dies", now=now, window_end=now)
    with pytest.raises(NothingToDo):
        monitoring_steps.due(settings, model=name)
    alive: dict[str, Any] = {"state_of": lambda run_id: "running", "now": now}
    assert monitoring_steps.release(settings, model=name, **alive) == []
    assert look(watched, now, "monitoring/training")["cause"] == "under_way"
    dead: dict[str, Any] = {"state_of": lambda run_id: "failed", "now": now}
    assert monitoring_steps.release(settings, model=name, **dead) == [f"{name}_training/dies"]
    assert monitoring_steps.release(settings, model=name, **dead) == []
    assert monitoring_steps.due(settings, model=name).startswith(f"decision {decision['id']}, drift")
    # Another one claims the same decision and finishes: its newest rows are as rich as the requests, so drift is
    # answered, whether or not the candidate was better.
    train(settings, watched.spec, f"{name}_training/heir", window_end=now, now=now)
    assert look(watched, now, "monitoring/after")["cause"] == "no_reason"
    gathered = evidence.gather(settings, watched.spec, now=now)
    assert [window.answered for window in gathered.windows] == [True, True]
    # Not where it had to wait for labels.
    with session(settings, "admin") as connection:
        judged = promotion_decision.c.run_id == f"{name}_training/heir"
        verdict = connection.scalar(select(promotion_decision.c.verdict).where(judged))
        connection.execute(update(promotion_decision).where(judged).values(verdict="wait"))
    gathered = evidence.gather(settings, watched.spec, now=now)
    assert [window.answered for window in gathered.windows] == [False, False]
    with session(settings, "admin") as connection:
        connection.execute(update(promotion_decision).where(judged).values(verdict=verdict))
    # The world moves on: that is news again.
    for number in range(3, 5):
        answer(watched, richer(richer(requests(watched, number))), END + number * DAY)
    again = look(watched, END + 5 * DAY)
    assert [note["cause"] for note in again["evidence"]["reasons"]] == ["drift"]
    decided = [row for row in all_of(watched, retrain_decision) if row["cause"] == "drift"]
    assert decided[0]["run_id"] == f"{name}_training/heir"


def test_a_broken_source_alerts_once_and_trains_nothing(watched: Watched) -> None:
    with webhook() as (address, taken):
        watched = Watched(
            watched.settings.model_copy(update={"alert_webhook": address}), watched.spec, watched.version, watched.world
        )
        for number in range(3):
            asked = requests(watched, number)
            broken = (
                asked.assign(annual_income=None)
                if number % 2
                else asked.assign(outstanding_debt=asked["outstanding_debt"] * 100)
            )
            answer(watched, broken, END + number * DAY)
            decision = look(watched, END + (number + 1) * DAY)
            assert (decision["action"], decision["cause"]) == ("hold", "broken_source"), decision["reason"]
    assert len(taken) == 1
    assert "outstanding_debt lies beyond nearly all of its training values, as in another unit" in taken[0]["text"]
    assert taken[0]["model"] == watched.spec.name
    assert all(row["action"] == "hold" for row in all_of(watched, retrain_decision) if row["cause"] != "manual")


def test_an_alert_that_could_not_be_sent_is_sent_by_the_next_run(watched: Watched) -> None:
    nobody = watched.settings.model_copy(update={"alert_webhook": "http://127.0.0.1:9/hook"})
    answer(watched, requests(watched, 1).assign(annual_income=None), END)
    look(Watched(nobody, watched.spec, watched.version, watched.world), END + DAY)
    with webhook() as (address, taken):
        reachable = watched.settings.model_copy(update={"alert_webhook": address})
        assert monitoring_steps.send_alerts(reachable, model=watched.spec.name, now=END + DAY) == 1
        assert monitoring_steps.send_alerts(reachable, model=watched.spec.name, now=END + DAY) == 0
    assert [told["cause"] for told in taken] == ["broken_source"]


def otherwise(asked: pd.DataFrame) -> pd.DataFrame:
    """The same customers under another rule."""
    return asked.assign(credit_score=asked["credit_score"].map({"Poor": "Good", "Standard": "Poor", "Good": "Poor"}))


def test_a_rule_that_changed_is_found_by_labels(watched: Watched) -> None:
    asked = requests(watched, 1)
    answer(watched, asked, END)
    label(watched, otherwise(asked), END)
    decision = look(watched, END + 3 * DAY)
    assert [row["lost"] for row in all_of(watched, performance_result)] == [True]
    assert [note["cause"] for note in decision["evidence"]["reasons"]] == ["performance"]


def test_what_clients_report_for_a_prediction_goes_before_its_label(watched: Watched) -> None:
    asked = requests(watched, 1)
    told = dict(zip(answer(watched, asked, END), asked["credit_score"], strict=True))
    label(watched, otherwise(asked), END)
    columns = "prediction_id, model, actual, received_at"
    statement = text(f"INSERT INTO prediction_feedback ({columns}) VALUES (:id, :model, :actual, NOW())")
    with session(watched.settings, "api") as connection:
        for wrong_first in ("Good", None):
            rows = [{"id": i, "model": watched.spec.name, "actual": wrong_first or a} for i, a in told.items()]
            connection.execute(statement, rows)
    look(watched, END + 3 * DAY)
    assert [row["lost"] for row in all_of(watched, performance_result)] == [False]


def test_labels_that_are_not_mature_yet_wait(watched: Watched) -> None:
    asked = requests(watched, 1)
    answer(watched, asked, END)
    label(watched, asked, END)
    look(watched, END + DAY)
    assert all_of(watched, performance_result) == []
    look(watched, END + 2 * DAY)
    assert [row["window_end"] for row in all_of(watched, performance_result)] == [END + DAY]


def test_windows_with_few_rows_are_put_together_and_repetitions_count_once(watched: Watched) -> None:
    asked = requests(watched, 1)
    for number in range(4):
        part = asked.iloc[number * 100 : (number + 1) * 100]
        answer(watched, pd.concat([part] * 3, ignore_index=True), END + number * DAY)
        look(watched, END + (number + 1) * DAY)
    counted = all_of(watched, window_profile)
    assert [(row["row_count"], row["distinct_count"]) for row in counted] == [(300, 100)] * 4
    merged = all_of(watched, drift_result)
    assert [(row["window_start"], row["window_end"], row["row_count"]) for row in merged] == [(END, END + 3 * DAY, 900)]


def test_requests_that_are_refused_all_at_once_look_like_a_broken_source(watched: Watched) -> None:
    with session(watched.settings, "api") as connection:
        refused = text("INSERT INTO request_reject VALUES (:model, :day, 'age', 'greater_than_equal', 390)")
        answer(watched, requests(watched, 1), END)
        look(watched, END + DAY)
        connection.execute(refused, {"model": watched.spec.name, "day": END + DAY})
    answer(watched, requests(watched, 2), END + DAY)
    decision = look(watched, END + 2 * DAY)
    assert decision["cause"] == "broken_source"
    assert "age is refused in 49% of the rows" in decision["reason"]
    answer(watched, requests(watched, 3), END + 2 * DAY)
    assert look(watched, END + 3 * DAY)["cause"] == "no_reason"


def test_an_unknown_version_in_the_log_does_not_stop_the_others(watched: Watched) -> None:
    answer(watched, requests(watched, 1), END)
    with session(watched.settings, "admin") as connection:
        some = prediction_log.c.model == watched.spec.name
        stranger = select(prediction_log.c.prediction_id).where(some).limit(1)
        found = connection.scalar(stranger)
        connection.execute(prediction_log.update().where(prediction_log.c.prediction_id == found).values(version=99))
    look(watched, END + DAY)
    assert [(row["version"], row["row_count"]) for row in all_of(watched, window_profile)] == [
        (watched.version, ROWS - 1)
    ]


def test_nothing_is_decided_before_something_serves(small: Small, tmp_path: Path) -> None:
    settings, spec = model_of(small, tmp_path, "never_served")
    watched = Watched(settings, spec, 0, pd.DataFrame())
    assert look(watched, END)["cause"] == "no_version"
    with session(settings, "pipeline") as connection:
        assert deployments.champion(connection, spec.name) is None
        assert rows.versions(connection, model=spec.name, after=END - 9 * DAY) == []


def test_a_candidate_whose_event_was_lost_is_announced_until_a_deployment_claims_it(watched: Watched) -> None:
    settings, name = watched.settings, watched.spec.name
    run = {"model": name, "candidate_version": 7, "verdict": "promote", "reason": "a test", "gates": []}
    with session(settings, "pipeline") as connection:
        history.add(connection, promotion_decision, {**run, "run_id": f"{name}/lost", "decided_at": END})
    assert monitoring_steps.due_candidate(settings, model=name) == "candidate version 7"
    promote.claim(settings, model=name, run_id=f"{name}/deploy", now=END)
    with pytest.raises(NothingToDo):
        monitoring_steps.due_candidate(settings, model=name)


def test_a_training_from_the_command_line_is_taken_for_dead_after_a_day(watched: Watched) -> None:
    settings, name = watched.settings, watched.spec.name
    training_runs.record_decision(settings, model=name, cause="manual", reason="a test", caused_by="cli/9", now=END)
    training_runs.claim(settings, spec=watched.spec, run_id=f"cli/{name}", now=END, window_end=END)

    def unasked(run_id: str) -> str | None:
        raise AssertionError(run_id)

    assert monitoring_steps.release(settings, model=name, state_of=unasked, now=END + DAY) == []
    assert monitoring_steps.release(settings, model=name, state_of=unasked, now=END + DAY + timedelta(seconds=1)) == [
        f"cli/{name}"
    ]
    assert monitoring_steps.due(settings, model=name)


def test_a_window_of_a_night_without_requests_says_nothing(watched: Watched) -> None:
    decision = look(watched, END + 2 * DAY)
    assert decision["cause"] == "no_reason"
    assert decision["reason"] == f"no window of version {watched.version} has enough rows yet"
    assert np.sum([row["row_count"] for row in all_of(watched, window_profile)]) == 0
