"""Compare the service with a bare Starlette service that commits the same rows: latencies, batches and look-ups by id.

Both services run all the time and are loaded in turns, a few seconds each. So other work on the machine affects both.
"""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Ratio, higher_is_better, lower_is_better
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_sides import BATCH_ROWS, ServingSetup, Side

ROUNDS, SECONDS = 7, 3.0
CONNECTIONS, BATCH_CONNECTIONS = 64, 8
RATE = 300.0  # requests per second in the open loop

Loads = dict[str, dict[str, Any]]  # name of the load → figures from `benchmarks.load_generator`


def measure_in_turns(setup: ServingSetup, ours: Side, bare: Side) -> tuple[list[Ratio], int]:
    """Return the figures, and how many rows both services answered together.

    Raises: AssertionError if an answer was not 200.
    """
    rounds: dict[str, list[Loads]] = {ours.name: [], bare.name: []}
    ours_log, bare_log = (setup.settings.home / f"{side.port}.log" for side in (ours, bare))
    with (
        process(ours.argv, ours.environment, log=ours_log),
        process(bare.argv, bare.environment, log=bare_log),
    ):
        wait_until_ready(ours.port, ours_log)
        wait_until_ready(bare.port, bare_log)
        for number in range(ROUNDS):
            sides = (ours, bare) if number % 2 else (bare, ours)
            loads_by_side: dict[str, Loads] = {side.name: {} for side in sides}
            for name, arguments in _load_arguments(setup).items():
                for side in sides:
                    figures = load(side.port, **arguments)
                    assert set(figures["statuses"]) == {"200"}, (side.name, figures)
                    loads_by_side[side.name][name] = figures
            for side in sides:
                rounds[side.name].append(loads_by_side[side.name])
            print(f"round {number + 1}, by turns: {json.dumps(loads_by_side)}", flush=True)
    answered_rows = sum(
        figures["answered"] * (BATCH_ROWS if name == "batch" else 1)
        for side_rounds in rounds.values()
        for loads in side_rounds
        for name, figures in loads.items()
    )
    return _build_figures(rounds[ours.name], rounds[bare.name]), answered_rows


def _load_arguments(setup: ServingSetup) -> dict[str, dict[str, Any]]:
    """Return the arguments of `load` by the name of the load."""
    single = {"path": "/predict", "bodies": setup.single_bodies, "seconds": SECONDS}
    return {
        "one": {**single, "connections": 1},
        "open": {**single, "connections": CONNECTIONS, "rate": RATE},
        "batch": {**single, "path": "/predict_batch", "bodies": setup.batch_bodies, "connections": BATCH_CONNECTIONS},
        "by_id": {**single, "path": "/predict_by_id", "bodies": setup.id_bodies, "connections": 1},
    }


def _build_figures(our_rounds: Sequence[Loads], bare_rounds: Sequence[Loads]) -> list[Ratio]:
    def latency(title: str, load_name: str, key: str, *, against: str, goal: float) -> Ratio:
        values, baselines = ([loads[load_name][key] for loads in rounds] for rounds in (our_rounds, bare_rounds))
        return lower_is_better(title, values, "ms", against=against, baselines=baselines, goal=goal)

    our_row_rates, bare_row_rates = (
        [BATCH_ROWS * loads["batch"]["requests_per_second"] for loads in rounds] for rounds in (our_rounds, bare_rounds)
    )
    bare_with_commits = "bare Starlette, one INSERT and COMMIT a request"
    open_loop = f"/predict, {RATE:.0f} requests/s, open loop"
    return [
        # Measured: 0.72 to 0.84. Checks, ids, warnings and counters add a quarter to the time of a single request.
        latency("/predict, one connection: median", "one", "p50_ms", against=bare_with_commits, goal=0.6),
        # Measured: 0.71 to 0.93. The percentile varies, because only ten to thirty requests of a round are slower.
        latency("/predict, one connection: 99th percentile", "one", "p99_ms", against=bare_with_commits, goal=0.5),
        latency(f"{open_loop}: 99th percentile", "open", "p99_ms", against=bare_with_commits, goal=0.5),
        # Measured: 0.63 to 0.66. Our look-up wakes a thread of its own. The bare service reads on the event loop.
        latency(
            "/predict_by_id, one connection, one id: median",
            "by_id",
            "p50_ms",
            against="bare Starlette, a SELECT by primary key before",
            goal=0.5,
        ),
        # Measured: 1.9 to 2.8. A batch builds its SQL literals once, and one thread scores while MariaDB inserts.
        higher_is_better(
            f"/predict_batch, {BATCH_ROWS:,} rows, answered and logged",
            our_row_rates,
            "rows/s",
            against="bare Starlette, one executemany and COMMIT a request",
            baselines=bare_row_rates,
            goal=1.4,
        ),
    ]
