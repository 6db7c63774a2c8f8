"""Requests a second of /predict at 64 connections, every answer durably logged, against the course-style service.

Both sides have the same rows, the same MariaDB, the same load generator beside them on the same cores, and trees of the
same number and depth. They are started and loaded in turn, and the median round counts.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from catboost import CatBoostClassifier
from sqlalchemy import text

from api.launch import serve_command
from api.shelf import Shelf
from benchmarks.baselines import course_style
from benchmarks.figures import Figure, higher_is_better, lower_is_better
from benchmarks.machine import load, process, wait_until_ready
from db import history
from db.sample import example_world
from db.session import session
from db.tables import deployment
from pipelines.bundle import bundle_hash, write_companions
from pipelines.features import pool_from_frame, rows_of, score
from pipelines.profile import build_profile
from pipelines.spec import ModelSpec, find_spec
from stack.programs import settings_environment
from tests.servers import free_port
from tests.services import own_mariadb
from utils.clock import utc_now
from utils.settings import Settings
from utils.version import ROOT

MODEL, CUSTOMERS, TREES = "credit_score", 1_500, 300
ROUNDS, SECONDS, CONNECTIONS = 3, 10.0, 64
GOAL = 10.0
COUNT = {"evergreen": "SELECT COUNT(*) FROM prediction_log", "course": "SELECT COUNT(*) FROM course_prediction"}


@dataclass(frozen=True, slots=True)
class Side:
    """How to start one of the services, and which query counts what it logged."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    port: int
    count: str


def measure() -> list[Figure]:
    """Raises: AssertionError where an answer was not 200, or fewer rows were logged than answers given."""
    spec = find_spec(ROOT / "models", MODEL)
    frame = _labelled_rows(spec)
    with own_mariadb([spec.store]) as server:
        settings = server.settings
        bodies = settings.home / "bodies"
        bodies.write_text("\n".join(_bodies(frame, spec)), encoding="utf-8")
        ours = _prepare_ours(settings, spec, frame)
        course = _prepare_course(settings, spec, frame, workers=1)
        course_more = _prepare_course(settings, spec, frame, workers=settings.serving_workers)
        rounds: dict[str, list[dict[str, Any]]] = {side.name: [] for side in (ours, course, course_more)}
        for number in range(ROUNDS):
            for side in (course, ours, course_more):
                rounds[side.name].append(_round(settings, side, bodies))
                print(f"round {number + 1}, {side.name}: {rounds[side.name][-1]}", flush=True)
    return _figures({name: _median(of) for name, of in rounds.items()}, workers=settings.serving_workers)


def _figures(medians: Mapping[str, Mapping[str, float]], *, workers: int) -> list[Figure]:
    ours, course, more = medians["evergreen"], medians["course"], medians["course, more workers"]
    rps, p50, p99 = "requests_per_second", "p50_ms", "p99_ms"
    at = f"/predict, logged, {CONNECTIONS} connections"
    return [
        higher_is_better(f"{at}: course-style service", ours[rps], "requests/s", baseline=course[rps], goal=GOAL),
        lower_is_better(f"{at}: median latency", ours[p50], "ms", baseline=course[p50]),
        lower_is_better(f"{at}: 99th percentile", ours[p99], "ms", baseline=course[p99]),
        higher_is_better(f"{at}: course-style with {workers} workers too", ours[rps], "requests/s", baseline=more[rps]),
    ]


def _labelled_rows(spec: ModelSpec) -> pd.DataFrame:
    world = example_world(MODEL, end=utc_now(), customers=CUSTOMERS)
    assert world is not None
    return world.rename(columns={spec.entity: "entity_id", str(spec.source.event_time): "event_time"})


def _bodies(frame: pd.DataFrame, spec: ModelSpec) -> list[str]:
    rows = frame.sample(1_000, random_state=1)
    values = [dict(zip(spec.features.columns, row, strict=True)) for row in rows_of(rows, spec=spec)]
    return [json.dumps({"data": {spec.entity: f"c-{i}", **each}}) for i, each in enumerate(values)]


def _prepare_ours(settings: Settings, spec: ModelSpec, frame: pd.DataFrame) -> Side:
    folder, port = settings.home / "bundle", free_port()
    folder.mkdir()
    model = CatBoostClassifier(iterations=TREES, depth=6, random_seed=1, verbose=False, allow_writing_files=False)
    model.fit(pool_from_frame(frame, spec=spec, label=True))
    model.save_model(str(folder / "model.cb"))
    predicted = score(model, pool_from_frame(frame, spec=spec, label=False), spec=spec).predictions
    write_companions(folder, model=model, spec=spec, profile=build_profile(frame, predicted, spec=spec), fitted=frame)
    Shelf(settings, MODEL).put(1, folder, tags={})
    row = {"model": MODEL, "action": "deploy", "version": 1, "artifact_sha256": bundle_hash(folder)}
    with session(settings, "pipeline") as connection:
        why = {"caused_by": "benchmark", "reason": "benchmark", "created_at": utc_now()}
        history.add(connection, deployment, {**row, **why})
    argv, environment = serve_command(settings, MODEL, port)
    own = settings_environment(settings, secrets=("db_api_password", "api_key"))
    return Side("evergreen", argv, {**own, **environment}, port, COUNT["evergreen"])


def _prepare_course(settings: Settings, spec: ModelSpec, frame: pd.DataFrame, *, workers: int) -> Side:
    folder, port = settings.home / f"course-{workers}", free_port()
    folder.mkdir()
    numeric, categorical = spec.columns_of("numeric"), spec.columns_of("categorical")  # without the text: less work
    label = spec.label.column
    course_style.train(frame, numeric=numeric, categorical=categorical, label=label, folder=folder, trees=TREES)
    with session(settings, "admin") as connection:
        course_style.Base.metadata.create_all(connection)
    argv, environment = serve_command(settings, MODEL, port)
    argv = ["benchmarks.baselines.course_style:CourseService" if "api.service" in part else part for part in argv]
    environment |= {
        "BENTOML_HOME": str(folder),
        "COURSE_FOLDER": str(folder),
        "COURSE_DATABASE": settings.db_url("admin"),
        "COURSE_WORKERS": str(workers),
    }
    name = "course" if workers == 1 else "course, more workers"
    return Side(name, argv, environment, port, COUNT["course"])


def _round(settings: Settings, side: Side, bodies: Path) -> dict[str, Any]:
    """Start the service, load it, stop it; figures of `benchmarks.load`."""
    log, before = settings.home / f"{side.port}.log", _count(settings, side)
    with process(side.argv, side.environment, log=log):
        wait_until_ready(side.port, log)
        figures = load(side.port, "/predict", bodies, connections=CONNECTIONS, seconds=SECONDS)
    logged = _count(settings, side) - before
    assert set(figures["statuses"]) == {"200"}, figures
    assert logged >= figures["answered"], f"{logged} logged, {figures['answered']} answered"
    return {**figures, "logged": logged}


def _count(settings: Settings, side: Side) -> int:
    with session(settings, "admin") as connection:
        return int(connection.scalar(text(side.count)))


def _median(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in rounds) for key in ("requests_per_second", "p50_ms", "p99_ms")}
