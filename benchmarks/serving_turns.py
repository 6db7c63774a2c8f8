"""Latencies, batches and look-ups of the service against bare Starlette that commits the same rows: asked by turns.

Both run all the time, and while one is asked the other only waits. So what the machine does besides meets both.
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

Found = dict[str, dict[str, Any]]  # figures of `benchmarks.load_generator` by what was asked


def by_turns(world: World, ours: Side, bare: Side) -> tuple[list[Ratio], int]:
    """The figures, and how many rows both sides have answered. Raises: AssertionError where an answer was not 200."""
    rounds: dict[str, list[Found]] = {ours.name: [], bare.name: []}
    ours_log, bare_log = (world.settings.home / f"{side.port}.log" for side in (ours, bare))
    with (
        process(ours.argv, ours.environment, log=ours_log),
        process(bare.argv, bare.environment, log=bare_log),
    ):
        wait_until_ready(ours.port, ours_log)
        wait_until_ready(bare.port, bare_log)
        for number in range(ROUNDS):
            sides = (ours, bare) if number % 2 else (bare, ours)
            found: dict[str, Found] = {side.name: {} for side in sides}
            for name, asked in _asked(world).items():
                for side in sides:
                    figures = load(side.port, **asked)
                    assert set(figures["statuses"]) == {"200"}, (side.name, figures)
                    found[side.name][name] = figures
            for side in sides:
                rounds[side.name].append(found[side.name])
            print(f"round {number + 1}, by turns: {json.dumps(found)}", flush=True)
    answered = sum(
        each["answered"] * (BATCH if name == "batch" else 1)
        for of_side in rounds.values()
        for found in of_side
        for name, each in found.items()
    )
    return _figures(rounds[ours.name], rounds[bare.name]), answered


def _asked(world: World) -> dict[str, dict[str, Any]]:
    """Arguments of `load`."""
    single = {"path": "/predict", "bodies": world.single, "seconds": SECONDS}
    return {
        "one": {**single, "connections": 1},
        "open": {**single, "connections": CONNECTIONS, "rate": RATE},
        "batch": {**single, "path": "/predict_batch", "bodies": world.batches, "connections": BATCHES_AT_ONCE},
        "by_id": {**single, "path": "/predict_by_id", "bodies": world.by_id, "connections": 1},
    }


def _figures(ours: Sequence[Found], bare: Sequence[Found]) -> list[Ratio]:
    def latency(what: str, name: str, key: str, *, against: str, goal: float) -> Ratio:
        values, baselines = ([found[name][key] for found in side] for side in (ours, bare))
        return lower_is_better(what, values, "ms", against=against, baselines=baselines, goal=goal)

    rows = [[BATCH * found["batch"]["requests_per_second"] for found in side] for side in (ours, bare)]
    commits = "bare Starlette, one INSERT and COMMIT a request"
    at_rate = f"/predict, {RATE:.0f} requests/s, open loop"
    return [
        # Checks, ids, warnings and counts cost a lone request a quarter more: 0.72 to 0.84 was measured.
        latency("/predict, one connection: median", "one", "p50_ms", against=commits, goal=0.6),
        # 0.71 to 0.93; a round's slowest hundredth is ten to thirty requests.
        latency("/predict, one connection: 99th percentile", "one", "p99_ms", against=commits, goal=0.5),
        latency(f"{at_rate}: 99th percentile", "open", "p99_ms", against=commits, goal=0.5),
        # 0.63 to 0.66: the look-up has a thread of its own to wake, which the bare one reads without.
        latency(
            "/predict_by_id, one connection, one id: median",
            "by_id",
            "p50_ms",
            against="bare Starlette, a SELECT by primary key before",
            goal=0.5,
        ),
        # 1.9 to 2.8: literals are put together once for a whole batch, and one thread scores while MariaDB inserts.
        higher_is_better(
            f"/predict_batch, {BATCH:,} rows, answered and logged",
            rows[0],
            "rows/s",
            against="bare Starlette, one executemany and COMMIT a request",
            baselines=rows[1],
            goal=1.4,
        ),
    ]
