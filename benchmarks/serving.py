"""Compare the prediction service, which logs every answer durably, with other services.

All services have the same trees and rows. The same load generator sends requests from the same cores. Each of three
rounds starts, loads and stops one service after the other, and the figures are medians of the rounds. `serving_sides`
defines the services.
"""

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from catboost import Pool
from sqlalchemy import text

from api.requests.schemas import build_schemas
from benchmarks.figures import Figure, Ratio, higher_is_better, lower_is_better
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_profile import measure_profile
from benchmarks.serving_sides import BATCH_ROWS, MODEL, VERSIONS, ServingSetup, Side
from benchmarks.serving_turns import measure_in_turns
from db.history import deployments
from db.session import session
from pipelines.artifact.learner import MISSING_TEXT, pool_from_rows, score
from pipelines.spec import find_spec
from tests.services import own_mariadb, wait_for
from utils.settings import Settings
from utils.version import ROOT

WORKERS, CONNECTIONS = 2, 64
# For the highest throughput. With 64 connections, the groups of rows that two workers commit are only half full.
MANY_CONNECTIONS = 200
ROUNDS, SECONDS = 3, 8.0
FEW_SWAPS, MANY_SWAPS = 5, 50
SCORED_BATCHES = 200

Loads = dict[str, dict[str, Any]]  # name of the load → figures from `benchmarks.load_generator`


def measure() -> list[Figure]:
    """Measure all figures of the prediction service.

    Raises: AssertionError if an answer was not 200, or if fewer rows were logged than answered.
    """
    spec = find_spec(ROOT / "models", MODEL)
    with own_mariadb([spec.store]) as server:
        setup = ServingSetup(server.settings)
        ours, one_worker = setup.evergreen_side(workers=WORKERS), setup.evergreen_side(workers=1)
        bare_with_log = setup.bare_side(workers=WORKERS, with_log=True)
        other_sides = [setup.course_side(workers=1), setup.course_side(workers=WORKERS), setup.mlflow_side()]
        other_sides += [setup.bare_side(workers=1), setup.bare_side(workers=WORKERS), bare_with_log]
        scoring_ratio = _measure_scoring(setup)
        memory_ratio = _measure_memory(setup, ours)
        count_before = _count_logged_rows(server.settings, ours)
        turn_figures, answered_rows = measure_in_turns(setup, ours, bare_with_log)
        logged_rows = _count_logged_rows(server.settings, ours) - count_before
        assert logged_rows >= answered_rows, f"{logged_rows} logged, {answered_rows} answered"
        rounds: list[Loads] = []
        for number in range(ROUNDS):
            loads: Loads = {}
            extra_loads = {
                one_worker.name: _arguments_for_many_connections(one_worker),
                ours.name: _arguments_for_many_connections(ours) | _arguments_for_ids(setup, ours),
            }
            # The services that are most like ours run directly before and after it.
            for side in [*other_sides[:-2], one_worker, ours, *other_sides[-2:]]:
                loads |= _run_loads(server.settings, side, extra_loads.get(side.name, {}))
            rounds.append(loads)
            print(f"round {number + 1}: {json.dumps(loads)}", flush=True)
        profile_figures = measure_profile(server, ours, one_worker)
    return [*_build_figures(rounds, other_sides), *turn_figures, scoring_ratio, memory_ratio, *profile_figures]


def _run_loads(settings: Settings, side: Side, extra_loads: Mapping[str, dict[str, Any]]) -> Loads:
    """Start the service, run the usual load and `extra_loads`, and stop it."""
    log, count_before = settings.home / f"{side.port}.log", _count_logged_rows(settings, side)
    with process(side.argv, side.environment, log=log):
        wait_until_ready(side.port, log, path=side.ready_path)
        loads = {
            name: load(side.port, **arguments)
            for name, arguments in {side.name: _usual_arguments(side), **extra_loads}.items()
        }
    for figures in loads.values():
        assert set(figures["statuses"]) == {"200"}, (side.name, figures)
    answered_rows = sum(figures["answered"] for figures in loads.values())
    logged_rows = _count_logged_rows(settings, side) - count_before
    assert not side.count_query or logged_rows >= answered_rows, (
        f"{side.name}: {logged_rows} logged, {answered_rows} answered"
    )
    return loads


def _usual_arguments(side: Side) -> dict[str, Any]:
    """Return the arguments of `load` for one row per request."""
    return {"path": side.path, "bodies": side.bodies, "connections": CONNECTIONS, "seconds": SECONDS}


def _arguments_for_many_connections(side: Side) -> dict[str, dict[str, Any]]:
    """Return the name of the load → its arguments."""
    return {f"{side.name}, {MANY_CONNECTIONS} connections": {**_usual_arguments(side), "connections": MANY_CONNECTIONS}}


def _arguments_for_ids(setup: ServingSetup, side: Side) -> dict[str, dict[str, Any]]:
    return {"by id": {**_usual_arguments(side), "path": "/predict_by_id", "bodies": setup.id_bodies}}


def _count_logged_rows(settings: Settings, side: Side) -> int:
    if not side.count_query:
        return 0
    with session(settings, "admin") as connection:
        return int(connection.scalar(text(side.count_query)))


def _measure_scoring(setup: ServingSetup) -> Ratio:
    """Compare how many rows per second the service's code and CatBoost alone score, with one thread.

    The service's code takes the bytes of a /predict_batch body, checks it, builds the pool and scores. Nothing is
    logged. The baseline has the rows already parsed.
    """
    schemas, body = build_schemas(setup.spec), setup.batch_bodies.read_bytes().splitlines()[0]
    parsed_rows = _build_parsed_rows(setup)
    feature_kinds = {
        "cat_features": setup.spec.columns_of("categorical"),
        "text_features": setup.spec.columns_of("text"),
    }

    def score_like_service() -> None:
        request: Any = schemas.predict_batch.model_validate_json(body)
        pool = pool_from_rows([list(row.values())[1:] for row in request.data], spec=setup.spec, threads=1)
        score(setup.model, pool, spec=setup.spec, threads=1)

    def score_by_catboost() -> None:
        pool = Pool(parsed_rows, feature_names=list(setup.spec.features.columns), thread_count=1, **feature_kinds)
        setup.model.predict(pool, prediction_type="Probability", thread_count=1)

    gc.collect()
    gc.freeze()  # a worker does this too before it serves
    rate_pairs = [
        (BATCH_ROWS / _measure_seconds(score_like_service), BATCH_ROWS / _measure_seconds(score_by_catboost))
        for _ in range(SCORED_BATCHES)
    ]
    rates, baselines = zip(*rate_pairs, strict=True)
    return higher_is_better(
        "/predict_batch, parsed and scored, one thread, no log",
        rates,
        "rows/s",
        against="CatBoost alone, pool and trees, one thread",
        baselines=baselines,
        goal=0.38,  # measured: 0.45 to 0.47; parsing and checks take as long as pool and trees
    )


def _build_parsed_rows(setup: ServingSetup) -> np.ndarray:
    """Return a batch in the format that CatBoost reads fastest: an array of objects, one row per request row."""
    columns = setup.spec.features.columns.items()
    return np.array(
        [
            [
                MISSING_TEXT if row[name] is None and feature.type != "numeric" else row[name]
                for name, feature in columns
            ]
            for row in setup.rows[:BATCH_ROWS]
        ],
        dtype=object,
    )


def _measure_seconds(work: Callable[[], None]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _measure_memory(setup: ServingSetup, side: Side) -> Ratio:
    """Compare the memory of the workers after many swaps with their memory after a few, to find leaks.

    Memory is the workers' proportional set size (PSS) in MB, right after a load.
    """
    log, megabytes = setup.settings.home / "swaps.log", dict[int, float]()
    with process(side.argv, side.environment, log=log):
        wait_until_ready(side.port, log)
        wait_for("all workers", lambda: len(_find_workers(setup)) == WORKERS)
        for swap in range(1, MANY_SWAPS + 1):
            version = VERSIONS[swap % 2]
            setup.deploy(version)
            wait_for(f"swap {swap}", lambda: {worker["version"] for worker in _find_workers(setup)} == {version})  # noqa: B023
            if swap in {FEW_SWAPS, MANY_SWAPS}:
                load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=1.0)
                pss = sum(psutil.Process(worker["pid"]).memory_full_info().pss for worker in _find_workers(setup))
                megabytes[swap] = pss / 1e6
                print(f"after {swap} swaps: {megabytes[swap]:.0f} MB", flush=True)
    return lower_is_better(
        f"memory of the workers after {MANY_SWAPS} swaps",
        [megabytes[MANY_SWAPS]],
        "MB",
        against=f"after {FEW_SWAPS} swaps",
        baselines=[megabytes[FEW_SWAPS]],
        goal=0.9,  # measured: 0.99; memory that leaks at each swap would add up over 45 swaps
    )


def _find_workers(setup: ServingSetup) -> list[Any]:
    with session(setup.settings, "reader") as connection:
        return [worker for worker in deployments.instances(connection, MODEL) if psutil.pid_exists(worker["pid"])]


def _build_figures(rounds: Sequence[Loads], other_sides: Sequence[Side]) -> list[Figure]:
    def values(name: str, key: str = "requests_per_second") -> list[float]:
        return [loads[name][key] for loads in rounds]

    def best_rates(name: str) -> list[float]:
        return [max(pair) for pair in zip(values(name), values(f"{name}, {MANY_CONNECTIONS} connections"), strict=True)]

    ours, one_worker = f"evergreen, {WORKERS}", "evergreen, 1"
    title, unit = f"/predict, {CONNECTIONS} connections, {WORKERS} workers", "requests/s"
    # Measured with and without other work on the machine:
    # 56 to 62, 12 to 60, 22 to 67, 1.4 to 2.8, 0.9 to 1.2, 2.6 to 4.0.
    goals = (20.0, None, 10.0, 1.3, 0.9, 2.0)
    return [
        *(
            higher_is_better(title, values(ours), unit, against=side.name, baselines=values(side.name), goal=goal)
            for side, goal in zip(other_sides, goals, strict=True)
        ),
        lower_is_better(
            f"{title}: 99th percentile",
            values(ours, "p99_ms"),
            "ms",
            against=other_sides[-1].name,
            baselines=values(other_sides[-1].name, "p99_ms"),
            goal=2.0,  # measured: 3.7 to 4.8; our service commits a group of rows at once
        ),
        # Measured: 0.63 to 0.95. A request by id also looks its row up, in a thread of its own.
        higher_is_better(
            "/predict_by_id, one id", values("by id"), unit, against="/predict", baselines=values(ours), goal=0.5
        ),
        higher_is_better(title, values(ours), unit, against=one_worker, baselines=values(one_worker)),
        higher_is_better(
            f"/predict, {WORKERS} workers, the most of {CONNECTIONS} and {MANY_CONNECTIONS} connections",
            best_rates(ours),
            unit,
            against=one_worker,
            baselines=best_rates(one_worker),
            goal=1.2,  # measured: 1.3 to 1.55; with one worker, two thirds of the two processors are already busy
        ),
    ]
