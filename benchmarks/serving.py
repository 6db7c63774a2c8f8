"""The prediction service against what else there is, every answer of ours durably logged.

All services have the same trees, the same rows and the same load generator beside them on the same cores. In each of
three rounds every one is started, loaded and stopped in turn; the median round counts. `serving_sides` has them.
"""

import gc
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import psutil
from sqlalchemy import text

from api.requests.schemas import build_schemas
from benchmarks.figures import Figure, higher_is_better, lower_is_better, within
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_profile import profile
from benchmarks.serving_sides import BATCH, MODEL, VERSIONS, Side, World
from db.history import deployments
from db.session import session
from pipelines.artifact.learner import pool_from_rows, score
from pipelines.spec import find_spec
from tests.services import own_mariadb, wait_for
from utils.settings import Settings
from utils.version import ROOT

WORKERS, CONNECTIONS = 2, 64
MANY = 200  # connections, for what a service gives at most: of 64, each of two workers has half a group to commit
ROUNDS, SECONDS, SHORT = 3, 8.0, 5.0
RATE = 300.0  # requests a second of the open loop
BATCHES_AT_ONCE = 8  # connections
EARLY, LATE = 5, 50  # swaps
SCORED_SECONDS = 3.0

Loads = dict[str, dict[str, Any]]  # figures of `benchmarks.load` by what was asked


def measure() -> list[Figure]:
    """Raises: AssertionError where an answer was not 200, or fewer rows were logged than answered."""
    spec = find_spec(ROOT / "models", MODEL)
    with own_mariadb([spec.store]) as server:
        world = World(server.settings)
        ours, alone = world.ours(workers=WORKERS), world.ours(workers=1)
        others = [world.course(workers=1), world.course(workers=WORKERS), world.mlflow()]
        others += [world.bare(workers=1), world.bare(workers=WORKERS)]
        scored = _scored_rows_a_second(world)
        memory = _memory_by_swaps(world, ours)
        rounds: list[Loads] = []
        for number in range(ROUNDS):
            found: Loads = {}
            for side in [others[0], ours, *others[1:], alone]:
                more = _more_of_ours(world) if side is ours else {}
                if side in (ours, alone):
                    more[_busier(side.name)] = {**_asked(side), "connections": MANY}
                found |= _round(server.settings, side, more)
            rounds.append(found)
            print(f"round {number + 1}: {json.dumps(found)}", flush=True)
        why = profile(server, ours, alone)
    return _figures(rounds, [side.name for side in others], scored=scored, memory=memory) + why


def _more_of_ours(world: World) -> dict[str, dict[str, Any]]:
    """What else our service is asked while it runs: arguments of `load` by the name of the figure."""
    single = {"path": "/predict", "bodies": world.single}
    return {
        "one": {**single, "connections": 1, "seconds": SHORT},
        "open": {**single, "connections": CONNECTIONS, "seconds": SHORT, "rate": RATE},
        "batch": {
            "path": "/predict_batch", "bodies": world.batches, "connections": BATCHES_AT_ONCE, "seconds": SHORT,
        },
        "by_id": {"path": "/predict_by_id", "bodies": world.by_id, "connections": CONNECTIONS, "seconds": SECONDS},
    }  # fmt: skip


def _round(settings: Settings, side: Side, more: Mapping[str, dict[str, Any]]) -> Loads:
    """Start the service, load it, stop it."""
    log, before = settings.home / f"{side.port}.log", _count(settings, side)
    with process(side.argv, side.environment, log=log):
        wait_until_ready(side.port, log, path=side.ready)
        found = {name: load(side.port, **asked) for name, asked in {side.name: _asked(side), **more}.items()}
    for figures in found.values():
        assert set(figures["statuses"]) == {"200"}, (side.name, figures)
    answered = sum(found[name]["answered"] * (BATCH if name == "batch" else 1) for name in found)
    logged = _count(settings, side) - before
    assert not side.count or logged >= answered, f"{side.name}: {logged} logged, {answered} answered"
    return found


def _asked(side: Side) -> dict[str, Any]:
    return {"path": side.path, "bodies": side.bodies, "connections": CONNECTIONS, "seconds": SECONDS}


def _busier(side: str) -> str:
    return f"{side}, {MANY} connections"


def _count(settings: Settings, side: Side) -> int:
    if not side.count:
        return 0
    with session(settings, "admin") as connection:
        return int(connection.scalar(text(side.count)))


def _scored_rows_a_second(world: World) -> float:
    """Rows of /predict_batch a second, from the bytes of a body to probabilities, by one thread and without a log.

    The functions are those of the service: validation of the body, the pool, CatBoost.
    """
    schemas, body = build_schemas(world.spec), world.batches.read_bytes().splitlines()[0]
    gc.collect()
    gc.freeze()  # as a worker does before it serves
    rounds, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SCORED_SECONDS:
        request: Any = schemas.predict_batch.model_validate_json(body)
        pool = pool_from_rows([list(row.values())[1:] for row in request.data], spec=world.spec, threads=1)
        assert len(score(world.model, pool, spec=world.spec, threads=1).predictions) == BATCH
        rounds += 1
    return rounds * BATCH / took


def _memory_by_swaps(world: World, side: Side) -> dict[int, float]:
    """Memory of the worker processes (PSS, MB) after `EARLY` and after `LATE` swaps, asked all the time."""
    log, memory = world.settings.home / "swaps.log", {}
    with process(side.argv, side.environment, log=log):
        wait_until_ready(side.port, log)
        wait_for("all workers", lambda: len(_workers(world)) == WORKERS)
        for swap in range(1, LATE + 1):
            version = VERSIONS[swap % 2]
            world.deploy(version)
            wait_for(f"swap {swap}", lambda: {each["version"] for each in _workers(world)} == {version})  # noqa: B023
            if swap in {EARLY, LATE}:
                load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=1.0)
                pss = sum(psutil.Process(each["pid"]).memory_full_info().pss for each in _workers(world))
                memory[swap] = pss / 1e6
                print(f"after {swap} swaps: {memory[swap]:.0f} MB", flush=True)
    return memory


def _workers(world: World) -> list[Any]:
    with session(world.settings, "reader") as connection:
        return [each for each in deployments.instances(connection, MODEL) if psutil.pid_exists(each["pid"])]


def _median(rounds: Sequence[Loads], name: str, key: str = "requests_per_second") -> float:
    return statistics.median(each[name][key] for each in rounds)


def _figures(
    rounds: Sequence[Loads], others: Sequence[str], *, scored: float, memory: Mapping[int, float]
) -> list[Figure]:
    median = partial(_median, rounds)
    ours, alone = f"evergreen, {WORKERS}", "evergreen, 1"
    goals = dict(zip(others, (20.0, None, 8.0, 1.5, 0.9), strict=True))
    at = f"/predict, logged, {CONNECTIONS} connections, {WORKERS} workers"
    told = {name: f"{name} worker(s)" if name[-1].isdigit() else name for name in others}
    return [
        *(
            higher_is_better(f"{at}: {told[name]}", median(ours), "requests/s", baseline=median(name), goal=goals[name])
            for name in others
        ),
        lower_is_better(
            f"{at}: 99th percentile, {others[0]}", median(ours, "p99_ms"), "ms", baseline=median(others[0], "p99_ms")
        ),
        within("/predict, one connection: median", median("one", "p50_ms"), "ms", most=1.3),
        within("/predict, one connection: 99th percentile", median("one", "p99_ms"), "ms", most=3.0),
        within(f"/predict, {RATE:.0f} requests/s, open loop: 99th percentile", median("open", "p99_ms"), "ms", most=10),
        within("/predict_batch, parsed and scored, one thread, no log", scored, "rows/s", least=100_000),
        within("/predict_batch, answered and logged", BATCH * median("batch"), "rows/s", least=20_000),
        higher_is_better(
            "/predict_by_id, one id: /predict", median("by_id"), "requests/s", baseline=median(ours), goal=0.6
        ),
        higher_is_better(f"{at}: one worker", median(ours), "requests/s", baseline=median(alone)),
        higher_is_better(
            f"/predict, the most of {CONNECTIONS} and {MANY} connections: one worker",
            max(median(ours), median(_busier(ours))),
            "requests/s",
            baseline=max(median(alone), median(_busier(alone))),
            goal=1.6,
        ),
        within(
            f"memory of the workers after {LATE} swaps: after {EARLY}", memory[LATE] / memory[EARLY], "times", most=1.1
        ),
    ]
