"""The cost of a challenger in the shadow for the champion's clients: one service with and without a challenger."""

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Figure, Ratio, lower_is_better
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_sides import MODEL, VERSIONS, Side, World
from db import history
from db.history import deployments
from db.session import session
from db.tables import shadow
from pipelines.spec import find_spec
from tests.services import own_mariadb, wait_for
from utils.clock import utc_now
from utils.version import ROOT

ROUNDS, SECONDS, CONNECTIONS, WORKERS = 5, 10.0, 64, 2
RATES = (100.0, 300.0)  # requests a second, open loop
WITHOUT, AGAIN, WITH = "without", "again without", "with"
# Key of the figures → name and goal.
LATENCIES = {"p50_ms": ("median", 0.9), "p95_ms": ("95th percentile", 0.9), "p99_ms": ("99th percentile", 0.7)}

Loads = dict[str, dict[str, Any]]  # WITHOUT, AGAIN or WITH → figures of `benchmarks.load_generator`


def measure() -> list[Figure]:
    """Latencies with and without a challenger. Each round runs three loads, in another order.

    Two of the loads run without the challenger. Their difference shows the noise of the machine.
    Raises: AssertionError if an answer was not 200, or if the challenger scored nothing.
    """
    spec = find_spec(ROOT / "models", MODEL)
    with own_mariadb([spec.store]) as server:
        world = World(server.settings)
        side, log = world.ours(workers=WORKERS), server.settings.home / "shadow.log"
        with process(side.argv, side.environment, log=log):
            wait_until_ready(side.port, log)
            rounds = {rate: [_round(world, side, rate, number) for number in range(ROUNDS)] for rate in RATES}
        assert _scored(world), "nothing was scored in the shadow"
    return [figure for rate in RATES for figure in _figures(rounds[rate], f"/predict, {rate:.0f} requests/s")]


def _figures(rounds: Sequence[Loads], what: str) -> list[Ratio]:
    ratios = []
    for key, (name, goal) in LATENCIES.items():
        without, again, with_one = ([loads[arm][key] for loads in rounds] for arm in (WITHOUT, AGAIN, WITH))
        means = [sum(both) / 2 for both in zip(without, again, strict=True)]
        ratios += [
            lower_is_better(
                f"{what}, with a challenger: {name}", with_one, "ms", against="without", baselines=means, goal=goal
            ),
            lower_is_better(
                f"{what}, control, again without: {name}", again, "ms", against="without", baselines=without
            ),
        ]
    return ratios


def _round(world: World, side: Side, rate: float, number: int) -> Loads:
    """Run one load with and two loads without the challenger. `number` rotates their order."""
    arms, loads = deque([WITHOUT, WITH, AGAIN]), {}
    arms.rotate(number)
    for arm in arms:
        _set_challenger(world, VERSIONS[1] if arm == WITH else None)
        loads[arm] = load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=SECONDS, rate=rate)
        assert set(loads[arm]["statuses"]) == {"200"}, loads[arm]
    print(f"round {number + 1}, {rate:.0f}/s: {json.dumps(loads)}", flush=True)
    return loads


def _set_challenger(world: World, version: int | None) -> None:
    """Make `version` the challenger, and wait until every worker has it."""
    row = {"model": MODEL, "version": version, "artifact_sha256": version and world.sha256[version]}
    with session(world.settings, "pipeline") as connection:
        history.add(connection, shadow, {**row, "caused_by": "benchmark", "created_at": utc_now()})

    def is_loaded() -> bool:
        with session(world.settings, "reader") as connection:
            return [row["shadow_version"] for row in deployments.instances(connection, MODEL)] == [version] * WORKERS

    wait_for(f"challenger {version}", is_loaded)


def _scored(world: World) -> int:
    with session(world.settings, "reader") as connection:
        return int(
            connection.exec_driver_sql("SELECT COUNT(*) FROM prediction_log WHERE role = 'shadow'").scalar() or 0
        )
