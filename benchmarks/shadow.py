"""What a challenger in the shadow costs the clients of the version that serves: one service with and without it."""

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
# And the goals.
LATENCIES = {"p50_ms": ("median", 0.9), "p95_ms": ("95th percentile", 0.9), "p99_ms": ("99th percentile", 0.7)}

Found = dict[str, dict[str, Any]]  # figures of `benchmarks.load_generator` by WITHOUT, AGAIN and WITH


def measure() -> list[Figure]:
    """Latencies with a challenger against those without it; each round asks all three, in another order.

    It is asked without the challenger twice: what these two differ by is the machine.
    Raises: AssertionError where an answer was not 200, or where the challenger scored nothing.
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


def _figures(rounds: Sequence[Found], what: str) -> list[Ratio]:
    made = []
    for key, (name, goal) in LATENCIES.items():
        without, again, with_one = ([found[arm][key] for found in rounds] for arm in (WITHOUT, AGAIN, WITH))
        usual = [sum(both) / 2 for both in zip(without, again, strict=True)]
        made += [
            lower_is_better(
                f"{what}, with a challenger: {name}", with_one, "ms", against="without", baselines=usual, goal=goal
            ),
            lower_is_better(
                f"{what}, control, again without: {name}", again, "ms", against="without", baselines=without
            ),
        ]
    return made


def _round(world: World, side: Side, rate: float, number: int) -> Found:
    """Latencies with the challenger and, twice, without; `number` turns their order."""
    arms, found = deque([WITHOUT, WITH, AGAIN]), {}
    arms.rotate(number)
    for arm in arms:
        _put(world, VERSIONS[1] if arm == WITH else None)
        found[arm] = load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=SECONDS, rate=rate)
        assert set(found[arm]["statuses"]) == {"200"}, found[arm]
    print(f"round {number + 1}, {rate:.0f}/s: {json.dumps(found)}", flush=True)
    return found


def _put(world: World, version: int | None) -> None:
    """Make `version` the challenger, and wait until every worker has it."""
    row = {"model": MODEL, "version": version, "artifact_sha256": version and world.sha256[version]}
    with session(world.settings, "pipeline") as connection:
        history.add(connection, shadow, {**row, "caused_by": "benchmark", "created_at": utc_now()})

    def done() -> bool:
        with session(world.settings, "reader") as connection:
            return [each["shadow_version"] for each in deployments.instances(connection, MODEL)] == [version] * WORKERS

    wait_for(f"challenger {version}", done)


def _scored(world: World) -> int:
    with session(world.settings, "reader") as connection:
        return int(
            connection.exec_driver_sql("SELECT COUNT(*) FROM prediction_log WHERE role = 'shadow'").scalar() or 0
        )
