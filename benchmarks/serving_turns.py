"""Latencies, batches and look-ups of the service against bare Starlette that commits the same rows, in turns.

Both services run all the time, and one is idle while the other is loaded. So other work on the machine affects both.
"""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Ratio, higher_is_better, lower_is_better
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_sides import BATCH, Side, World

ROUNDS, SECONDS = 7, 3.0
CONNECTIONS, BATCHES_AT_ONCE = 64, 8
RATE = 300.0  # requests a second of the open loop

Loads = dict[str, dict[str, Any]]  # name of the load → figures of `benchmarks.load_generator`


def by_turns(world: World, ours: Side, bare: Side) -> tuple[list[Ratio], int]:
    """The figures, and the number of rows that both sides answered. Raises: AssertionError if an answer was not 200."""
    rounds: dict[str, list[Loads]] = {ours.name: [], bare.name: []}
    ours_log, bare_log = (world.settings.home / f"{side.port}.log" for side in (ours, bare))
    with (
        process(ours.argv, ours.environment, log=ours_log),
        process(bare.argv, bare.environment, log=bare_log),
    ):
        wait_until_ready(ours.port, ours_log)
        wait_until_ready(bare.port, bare_log)
        for number in range(ROUNDS):
            sides = (ours, bare) if number % 2 else (bare, ours)
            loads_by_side: dict[str, Loads] = {side.name: {} for side in sides}
            for name, arguments in _load_arguments(world).items():
                for side in sides:
                    figures = load(side.port, **arguments)
                    assert set(figures["statuses"]) == {"200"}, (side.name, figures)
                    loads_by_side[side.name][name] = figures
            for side in sides:
                rounds[side.name].append(loads_by_side[side.name])
            print(f"round {number + 1}, by turns: {json.dumps(loads_by_side)}", flush=True)
    answered_rows = sum(
        figures["answered"] * (BATCH if name == "batch" else 1)
        for side_rounds in rounds.values()
        for loads in side_rounds
        for name, figures in loads.items()
    )
    return _figures(rounds[ours.name], rounds[bare.name]), answered_rows


def _load_arguments(world: World) -> dict[str, dict[str, Any]]:
    """Name of the load → arguments of `load`."""
    single = {"path": "/predict", "bodies": world.single, "seconds": SECONDS}
    return {
        "one": {**single, "connections": 1},
        "open": {**single, "connections": CONNECTIONS, "rate": RATE},
        "batch": {**single, "path": "/predict_batch", "bodies": world.batches, "connections": BATCHES_AT_ONCE},
        "by_id": {**single, "path": "/predict_by_id", "bodies": world.by_id, "connections": 1},
    }


def _figures(ours: Sequence[Loads], bare: Sequence[Loads]) -> list[Ratio]:
    def latency(what: str, name: str, key: str, *, against: str, goal: float) -> Ratio:
        values, baselines = ([loads[name][key] for loads in rounds] for rounds in (ours, bare))
        return lower_is_better(what, values, "ms", against=against, baselines=baselines, goal=goal)

    rows = [[BATCH * loads["batch"]["requests_per_second"] for loads in rounds] for rounds in (ours, bare)]
    commits = "bare Starlette, one INSERT and COMMIT a request"
    open_loop = f"/predict, {RATE:.0f} requests/s, open loop"
    return [
        # Measured: 0.72 to 0.84. Checks, ids, warnings and counters add a quarter to a single request.
        latency("/predict, one connection: median", "one", "p50_ms", against=commits, goal=0.6),
        # Measured: 0.71 to 0.93. The slowest hundredth of a round is ten to thirty requests.
        latency("/predict, one connection: 99th percentile", "one", "p99_ms", against=commits, goal=0.5),
        latency(f"{open_loop}: 99th percentile", "open", "p99_ms", against=commits, goal=0.5),
        # Measured: 0.63 to 0.66. Our look-up must wake its own thread; the bare service reads on the event loop.
        latency(
            "/predict_by_id, one connection, one id: median",
            "by_id",
            "p50_ms",
            against="bare Starlette, a SELECT by primary key before",
            goal=0.5,
        ),
        # Measured: 1.9 to 2.8. A batch builds its SQL literals once, and one thread scores while MariaDB inserts.
        higher_is_better(
            f"/predict_batch, {BATCH:,} rows, answered and logged",
            rows[0],
            "rows/s",
            against="bare Starlette, one executemany and COMMIT a request",
            baselines=rows[1],
            goal=1.4,
        ),
    ]
