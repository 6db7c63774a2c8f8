"""Monitoring on a real MariaDB and MLflow, from logged predictions to a decision. Every step runs twice."""

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
from db.history import deployments, trainings, window_rows
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
ROWS = 400  # requests in a window, above min_rows


@dataclass(frozen=True, slots=True)
class Model:
    """A model with a deployed version.

    world: the rows that requests are drawn from, the last statement of each of 600 customers.
    """

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
        training_steps.run_step(name, run_id, settings=settings, now=now)
    return training_runs.read_verdict(settings, run_id)


@dataclass(frozen=True, slots=True)
class Training:
    """A training until END and the files and tags of its promoted version."""

    run: RowMapping
    folder: Path
    tags: dict[str, str]


@pytest.fixture(scope="module")
def training(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Training:
    settings, spec = model_of(small, tmp_path_factory.mktemp("trained"), "watched")
    assert train(settings, spec, "watched/first", window_end=END, now=END) == "promote"
    claim = promote.claim(settings, model=spec.name, run_id="watched/deploy", now=END)
    version = promote.promote(settings, decision_id=claim["decision"])
    folder = tmp_path_factory.mktemp("bundle")
    registry.download(settings, spec.name, version, folder)
    with session(settings, "pipeline") as connection:
        run = trainings.find_run(connection, "watched/first")
    assert run is not None
    return Training(run, folder, registry.version_tags(settings, spec.name, version))


@pytest.fixture
def model(small: Small, training: Training, tmp_path: Path) -> Model:
    """A new model that serves the version trained until END. Its log is empty."""
    name = f"watched_{uuid4().hex[:8]}"
    settings, spec = model_of(small, tmp_path, name)
    run = {**training.run, "run_id": f"{name}/first", "model": name, "commit_seq": 1}
    tags = {**training.tags, "run_id": run["run_id"]}
    with session(settings, "pipeline") as connection:
        history.add(connection, training_run, run)
    version = registry.register(
        settings, model=name, mlflow_run_id=run["mlflow_run_id"], folder=training.folder, tags=tags, description=""
    )
    rollout.roll_out(settings, model=name, version=version, caused_by="test", reason="a test", now=END)
    world = worlds.example_world("credit_score", end=END, customers=600)
    return Model(settings, spec, version, world.groupby("customer_id").tail(1).reset_index(drop=True))


def requests(model: Model, seed: int, count: int = ROWS) -> pd.DataFrame:
    return model.world.sample(count, random_state=seed).reset_index(drop=True)


def richer(rows: pd.DataFrame) -> pd.DataFrame:
    """Raise the incomes in `rows` by a good half of their standard deviation."""
    factor = dict.fromkeys(("annual_income", "monthly_inhand_salary", "monthly_balance"), 1.4)
    return rows.assign(**{name: rows[name] * rate for name, rate in factor.items()})


def answer(model: Model, frame: pd.DataFrame, day: datetime) -> list[str]:
    """Log predictions for the rows of `frame`, spread over `day`, like a service does. Return their ids."""
    spec, features = model.spec, list(model.spec.features.columns)
    bundle = registry.load(model.settings, spec.name, model.version)
    scores = score(bundle.model, pool_from_frame(frame, spec=spec, label=False), spec=spec)
    feature_rows = json.loads(frame[features].to_json(orient="records"))
    log_rows = []
    for number, (entity, feature_values) in enumerate(zip(frame["customer_id"], feature_rows, strict=True)):
        moment = day + number * DAY / len(frame)
        assert scores.probabilities is not None
        by_class = dict(zip(spec.label.classes, scores.probabilities[number].tolist(), strict=True))
        warnings = [f"missing: {name}" for name, value in feature_values.items() if value is None]
        values = (
            str(new_id(moment)),
            spec.name,
            model.version,
            "champion",
            entity,
            json.dumps(feature_values),
            scores.predictions[number],
            max(by_class.values()),
            json.dumps(by_class),
            json.dumps(warnings),
            1.0,
            str(uuid4()),
            moment,
            moment,
        )
        log_rows.append(dict(zip(LOG_COLUMNS, values, strict=True)))
    statement = text(f"INSERT INTO prediction_log VALUES ({', '.join(f':{name}' for name in LOG_COLUMNS)})")
    with session(model.settings, "api") as connection:
        connection.execute(statement, log_rows)
    return [row["prediction_id"] for row in log_rows]


def label(model: Model, frame: pd.DataFrame, day: datetime, *, features: bool = False) -> None:
    """Load labels for `frame`. Event time is `day`, availability time a day later. With `features`, load them too."""
    labels = frame.rename(columns={"customer_id": "entity_id"}).assign(event_time=day)
    columns = ["entity_id", "event_time"]
    append(
        model.settings,
        model.spec.store,
        labels=labels[[*columns, "credit_score"]],
        features=labels[[*columns, *model.spec.features.columns]] if features else None,
        source="test",
        content_sha256=uuid4().hex,
        caused_by="test",
        now=day + DAY,
        available_at_given=False,
    )


def monitor(model: Model, until: datetime, caused_by: str = "") -> RowMapping:
    """Run monitoring, each step twice. Return the decision."""
    now = until + timedelta(minutes=1)
    for _ in range(2):
        for do in monitoring_steps.STEPS.values():
            do(model.settings, model.spec, until=until, now=now)
    caused_by = caused_by or f"monitoring/{until}"
    first = monitoring_steps.decide_and_alert(model.settings, model.spec, caused_by=caused_by, now=now)
    assert monitoring_steps.decide_and_alert(model.settings, model.spec, caused_by=caused_by, now=now) == first
    return first


def rows_of(model: Model, table: Any) -> list[RowMapping]:
    with session(model.settings, "pipeline") as connection:
        rows = select(table).where(table.c.model == model.spec.name).order_by(table.c.id)
        return list(connection.execute(rows).mappings())


def test_an_unchanged_world_is_counted_once_and_causes_no_training(model: Model) -> None:
    for number in range(3):
        frame = requests(model, number)
        answer(model, frame, END + number * DAY)
        label(model, frame, END + number * DAY)
    decision = monitor(model, END + 4 * DAY)
    assert (decision["action"], decision["cause"]) == ("hold", "no_reason"), decision["reason"]
    profiles = rows_of(model, window_profile)
    assert [row["row_count"] for row in profiles] == [ROWS, ROWS, ROWS, 0]
    assert all(sum(row["counts"]["age"]) == ROWS for row in profiles[:3])
    assert [row["drifted"] for row in rows_of(model, drift_result)] == [False] * 3
    results = rows_of(model, performance_result)
    assert [row["label_count"] for row in results] == [ROWS, ROWS, ROWS]
    assert not any(row["lost"] for row in results)
    assert all(row["low"] < row["value"] < row["high"] and row["threshold"] < row["judged"] for row in results)


def test_drift_leads_to_one_decision_that_stays_open_until_a_training_claims_it(model: Model) -> None:
    """Crashes between row and event, between event and claim, and after the claim lose and repeat nothing."""
    settings, name = model.settings, model.spec.name
    for number in range(2):
        frame = richer(requests(model, number))
        answer(model, frame, END + number * DAY)
        label(model, frame, END + number * DAY, features=True)
    now = END + 3 * DAY
    decision = monitor(model, now)
    assert (decision["action"], decision["cause"]) == ("retrain", "drift"), decision["reason"]
    drift_rows = rows_of(model, drift_result)
    assert [row["drifted"] for row in drift_rows] == [True, True]
    assert {"annual_income", "monthly_inhand_salary"} <= set(drift_rows[0]["evidence"]["drifted"])
    # A crash before the event: the next run adds no decision, and announces the row that exists.
    assert monitor(model, now, "monitoring/next")["cause"] == "under_way"
    assert monitoring_steps.due(settings, model=name).startswith(f"decision {decision['id']}, drift")
    # The event arrives. The training claims the decision and crashes.
    training_runs.claim(settings, spec=model.spec, run_id=f"{name}_training/dies", now=now, window_end=now)
    with pytest.raises(NothingToDo):
        monitoring_steps.due(settings, model=name)
    running: dict[str, Any] = {"state_of": lambda run_id: "running", "now": now}
    assert monitoring_steps.release(settings, model=name, **running) == []
    assert monitor(model, now, "monitoring/training")["cause"] == "under_way"
    failed: dict[str, Any] = {"state_of": lambda run_id: "failed", "now": now}
    assert monitoring_steps.release(settings, model=name, **failed) == [f"{name}_training/dies"]
    assert monitoring_steps.release(settings, model=name, **failed) == []
    assert monitoring_steps.due(settings, model=name).startswith(f"decision {decision['id']}, drift")
    # Another training claims the same decision and finishes. Its newest rows have the same incomes as the requests,
    # so it answers the drift, whether or not its candidate was better.
    train(settings, model.spec, f"{name}_training/heir", window_end=now, now=now)
    assert monitor(model, now, "monitoring/after")["cause"] == "no_reason"
    current_evidence = evidence.gather(settings, model.spec, now=now)
    assert [window.answered for window in current_evidence.windows] == [True, True]
    # A verdict that waits for labels does not answer the drift.
    with session(settings, "admin") as connection:
        of_training = promotion_decision.c.run_id == f"{name}_training/heir"
        verdict = connection.scalar(select(promotion_decision.c.verdict).where(of_training))
        connection.execute(update(promotion_decision).where(of_training).values(verdict="wait"))
    current_evidence = evidence.gather(settings, model.spec, now=now)
    assert [window.answered for window in current_evidence.windows] == [False, False]
    with session(settings, "admin") as connection:
        connection.execute(update(promotion_decision).where(of_training).values(verdict=verdict))
    # The incomes rise again. That is new drift.
    for number in range(3, 5):
        answer(model, richer(richer(requests(model, number))), END + number * DAY)
    decision = monitor(model, END + 5 * DAY)
    assert [reason["cause"] for reason in decision["evidence"]["reasons"]] == ["drift"]
    drift_decisions = [row for row in rows_of(model, retrain_decision) if row["cause"] == "drift"]
    assert drift_decisions[0]["run_id"] == f"{name}_training/heir"


def test_a_broken_source_alerts_once_and_trains_nothing(model: Model) -> None:
    with webhook() as (address, messages):
        model = Model(
            model.settings.model_copy(update={"alert_webhook": address}), model.spec, model.version, model.world
        )
        for number in range(3):
            frame = requests(model, number)
            broken = (
                frame.assign(annual_income=None)
                if number % 2
                else frame.assign(outstanding_debt=frame["outstanding_debt"] * 100)
            )
            answer(model, broken, END + number * DAY)
            decision = monitor(model, END + (number + 1) * DAY)
            assert (decision["action"], decision["cause"]) == ("hold", "broken_source"), decision["reason"]
    assert len(messages) == 1
    assert "outstanding_debt lies beyond nearly all of its training values, as in another unit" in messages[0]["text"]
    assert messages[0]["model"] == model.spec.name
    assert all(row["action"] == "hold" for row in rows_of(model, retrain_decision) if row["cause"] != "manual")


def test_an_alert_that_could_not_be_sent_is_sent_by_the_next_run(model: Model) -> None:
    without_receiver = model.settings.model_copy(update={"alert_webhook": "http://127.0.0.1:9/hook"})
    answer(model, requests(model, 1).assign(annual_income=None), END)
    monitor(Model(without_receiver, model.spec, model.version, model.world), END + DAY)
    with webhook() as (address, messages):
        reachable = model.settings.model_copy(update={"alert_webhook": address})
        assert monitoring_steps.send_alerts(reachable, model=model.spec.name, now=END + DAY) == 1
        assert monitoring_steps.send_alerts(reachable, model=model.spec.name, now=END + DAY) == 0
    assert [message["cause"] for message in messages] == ["broken_source"]


def with_other_rule(frame: pd.DataFrame) -> pd.DataFrame:
    """The same customers, labelled by another rule."""
    return frame.assign(credit_score=frame["credit_score"].map({"Poor": "Good", "Standard": "Poor", "Good": "Poor"}))


def test_labels_show_a_changed_rule(model: Model) -> None:
    frame = requests(model, 1)
    answer(model, frame, END)
    label(model, with_other_rule(frame), END)
    decision = monitor(model, END + 3 * DAY)
    assert [row["lost"] for row in rows_of(model, performance_result)] == [True]
    assert [reason["cause"] for reason in decision["evidence"]["reasons"]] == ["performance"]


def test_feedback_on_a_prediction_takes_precedence_over_its_label(model: Model) -> None:
    frame = requests(model, 1)
    actuals = dict(zip(answer(model, frame, END), frame["credit_score"], strict=True))
    label(model, with_other_rule(frame), END)
    columns = "prediction_id, model, actual, received_at"
    statement = text(f"INSERT INTO prediction_feedback ({columns}) VALUES (:id, :model, :actual, NOW())")
    with session(model.settings, "api") as connection:
        for actual in ("Good", None):
            rows = [{"id": i, "model": model.spec.name, "actual": actual or a} for i, a in actuals.items()]
            connection.execute(statement, rows)
    monitor(model, END + 3 * DAY)
    assert [row["lost"] for row in rows_of(model, performance_result)] == [False]


def test_performance_waits_for_mature_labels(model: Model) -> None:
    frame = requests(model, 1)
    answer(model, frame, END)
    label(model, frame, END)
    monitor(model, END + DAY)
    assert rows_of(model, performance_result) == []
    monitor(model, END + 2 * DAY)
    assert [row["window_end"] for row in rows_of(model, performance_result)] == [END + DAY]


def test_windows_with_few_rows_are_merged_and_repeated_rows_count_once(model: Model) -> None:
    frame = requests(model, 1)
    for number in range(4):
        part = frame.iloc[number * 100 : (number + 1) * 100]
        answer(model, pd.concat([part] * 3, ignore_index=True), END + number * DAY)
        monitor(model, END + (number + 1) * DAY)
    profiles = rows_of(model, window_profile)
    assert [(row["row_count"], row["distinct_count"]) for row in profiles] == [(300, 100)] * 4
    results = rows_of(model, drift_result)
    assert [(row["window_start"], row["window_end"], row["row_count"]) for row in results] == [
        (END, END + 3 * DAY, 900)
    ]


def test_many_refused_requests_at_once_look_like_a_broken_source(model: Model) -> None:
    with session(model.settings, "api") as connection:
        statement = text("INSERT INTO request_reject VALUES (:model, :day, 'age', 'greater_than_equal', 390)")
        answer(model, requests(model, 1), END)
        monitor(model, END + DAY)
        connection.execute(statement, {"model": model.spec.name, "day": END + DAY})
    answer(model, requests(model, 2), END + DAY)
    decision = monitor(model, END + 2 * DAY)
    assert decision["cause"] == "broken_source"
    assert "age is refused in 49% of the rows" in decision["reason"]
    answer(model, requests(model, 3), END + 2 * DAY)
    assert monitor(model, END + 3 * DAY)["cause"] == "no_reason"


def test_an_unknown_version_in_the_log_does_not_stop_the_others(model: Model) -> None:
    answer(model, requests(model, 1), END)
    with session(model.settings, "admin") as connection:
        of_model = prediction_log.c.model == model.spec.name
        query = select(prediction_log.c.prediction_id).where(of_model).limit(1)
        prediction_id = connection.scalar(query)
        connection.execute(
            prediction_log.update().where(prediction_log.c.prediction_id == prediction_id).values(version=99)
        )
    monitor(model, END + DAY)
    assert [(row["version"], row["row_count"]) for row in rows_of(model, window_profile)] == [(model.version, ROWS - 1)]


def test_without_a_deployed_version_monitoring_holds(small: Small, tmp_path: Path) -> None:
    settings, spec = model_of(small, tmp_path, "never_served")
    model = Model(settings, spec, 0, pd.DataFrame())
    assert monitor(model, END)["cause"] == "no_version"
    with session(settings, "pipeline") as connection:
        assert deployments.champion(connection, spec.name) is None
        assert window_rows.versions(connection, model=spec.name, after=END - 9 * DAY) == []


def test_a_candidate_whose_event_was_lost_is_announced_again_until_a_deployment_claims_it(model: Model) -> None:
    settings, name = model.settings, model.spec.name
    run = {"model": name, "candidate_version": 7, "verdict": "promote", "reason": "a test", "gates": []}
    with session(settings, "pipeline") as connection:
        history.add(connection, promotion_decision, {**run, "run_id": f"{name}/lost", "decided_at": END})
    assert monitoring_steps.due_candidate(settings, model=name) == "candidate version 7"
    promote.claim(settings, model=name, run_id=f"{name}/deploy", now=END)
    with pytest.raises(NothingToDo):
        monitoring_steps.due_candidate(settings, model=name)


def test_a_training_from_the_command_line_counts_as_failed_after_a_day(model: Model) -> None:
    settings, name = model.settings, model.spec.name
    training_runs.record_decision(settings, model=name, cause="manual", reason="a test", caused_by="cli/9", now=END)
    training_runs.claim(settings, spec=model.spec, run_id=f"cli/{name}", now=END, window_end=END)

    def unexpected(run_id: str) -> str | None:
        raise AssertionError(run_id)

    assert monitoring_steps.release(settings, model=name, state_of=unexpected, now=END + DAY) == []
    assert monitoring_steps.release(
        settings, model=name, state_of=unexpected, now=END + DAY + timedelta(seconds=1)
    ) == [f"cli/{name}"]
    assert monitoring_steps.due(settings, model=name)


def test_a_window_without_requests_is_no_reason(model: Model) -> None:
    decision = monitor(model, END + 2 * DAY)
    assert decision["cause"] == "no_reason"
    assert decision["reason"] == f"no window of version {model.version} has enough rows yet"
    assert np.sum([row["row_count"] for row in rows_of(model, window_profile)]) == 0
