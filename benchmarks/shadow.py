"""What a challenger in the shadow costs the clients of the version that serves: one service with and without it."""

import json
import statistics
from typing import Any

from benchmarks.figures import Figure, within
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_sides import MODEL, VERSIONS, Side, World
from db import history
from db.session import session
from db.tables import shadow
from pipelines.spec import find_spec
from tests.services import own_mariadb, wait_for
from utils.clock import utc_now
from utils.version import ROOT

ROUNDS, SECONDS, CONNECTIONS, WORKERS = 7, 6.0, 64, 2
RATES = (100.0, 300.0)  # requests a second, open loop
MOST = 1.1


def measure() -> list[Figure]:
    """Medians over rounds of the ratio within a round; each round asks without the challenger and with it, in turns.

    Raises: AssertionError where an answer was not 200, or where the challenger scored nothing.
    """
    spec = find_spec(ROOT / "models", MODEL)
    with own_mariadb([spec.store]) as server:
        world = World(server.settings)
        side, log = world.ours(workers=WORKERS), server.settings.home / "shadow.log"
        with process(side.argv, side.environment, log=log):
            wait_until_ready(side.port, log)
            ratios = {rate: [_round(world, side, rate, number) for number in range(ROUNDS)] for rate in RATES}
        assert _scored(world), "nothing was scored in the shadow"
    return [
        within(
            f"/predict, {rate:.0f} requests/s, with a challenger against without: {name}",
            statistics.median(each[key] for each in ratios[rate]), "times", most=MOST,
        )
        for rate in RATES
        for key, name in (("p50_ms", "median latency"), ("p99_ms", "99th percentile"))
    ]  # fmt: skip


def _round(world: World, side: Side, rate: float, number: int) -> dict[str, float]:
    """Latency with the challenger as a multiple of that without; which of them goes first changes with `number`."""
    found: dict[bool, dict[str, Any]] = {}
    for present in (bool(number % 2), not number % 2):
        _put(world, VERSIONS[1] if present else None)
        found[present] = load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=SECONDS, rate=rate)
        assert set(found[present]["statuses"]) == {"200"}, found[present]
    print(
        f"round {number + 1}, {rate:.0f}/s: without {json.dumps(found[False])}, with {json.dumps(found[True])}",
        flush=True,
    )
    return {key: found[True][key] / found[False][key] for key in ("p50_ms", "p99_ms")}


def _put(world: World, version: int | None) -> None:
    """Make `version` the challenger, and wait until every worker has it."""
    row = {"model": MODEL, "version": version, "artifact_sha256": version and world.sha256[version]}
    with session(world.settings, "pipeline") as connection:
        history.add(connection, shadow, {**row, "caused_by": "benchmark", "created_at": utc_now()})

    def done() -> bool:
        with session(world.settings, "reader") as connection:
            return [each["shadow_version"] for each in history.instances(connection, MODEL)] == [version] * WORKERS

    wait_for(f"challenger {version}", done)


def _scored(world: World) -> int:
    with session(world.settings, "reader") as connection:
        return int(
            connection.exec_driver_sql("SELECT COUNT(*) FROM prediction_log WHERE role = 'shadow'").scalar() or 0
        )
