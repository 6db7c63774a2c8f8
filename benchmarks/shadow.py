"""Measure how much a challenger in the shadow slows down the champion's answers.

The same service runs with and without a challenger.
"""

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Figure, Ratio, lower_is_better
from benchmarks.machine import load, process, wait_until_ready
from benchmarks.serving_sides import MODEL, VERSIONS, ServingSetup, Side
from db import history
from db.history import deployments
from db.session import session
from db.tables import shadow
from pipelines.spec import find_spec
from tests.services import own_mariadb, wait_for
from utils.clock import utc_now
from utils.version import ROOT

ROUNDS, SECONDS, CONNECTIONS, WORKERS = 5, 10.0, 64, 2
RATES = (100.0, 300.0)  # requests per second in an open loop
WITHOUT, WITHOUT_AGAIN, WITH = "without", "again without", "with"
# Key in the load generator's figures → name and goal.
LATENCIES = {"p50_ms": ("median", 0.9), "p95_ms": ("95th percentile", 0.9), "p99_ms": ("99th percentile", 0.7)}

Loads = dict[str, dict[str, Any]]  # WITHOUT, WITHOUT_AGAIN or WITH → figures from `benchmarks.load_generator`


def measure() -> list[Figure]:
    """Measure latencies with and without a challenger.

    Each round runs three loads, and the order changes from round to round. Two of the loads run without the challenger.
    The difference between these two shows how much latencies vary on this machine anyway.

    Raises: AssertionError if an answer was not 200, or if the challenger scored no row.
    """
    spec = find_spec(ROOT / "models", MODEL)
    with own_mariadb([spec.store]) as server:
        setup = ServingSetup(server.settings)
        side, log = setup.evergreen_side(workers=WORKERS), server.settings.home / "shadow.log"
        with process(side.argv, side.environment, log=log):
            wait_until_ready(side.port, log)
            rounds = {rate: [_run_round(setup, side, rate, number) for number in range(ROUNDS)] for rate in RATES}
        assert _count_shadow_rows(setup), "nothing was scored in the shadow"
    return [figure for rate in RATES for figure in _build_figures(rounds[rate], f"/predict, {rate:.0f} requests/s")]


def _build_figures(rounds: Sequence[Loads], load_name: str) -> list[Ratio]:
    ratios = []
    for key, (name, goal) in LATENCIES.items():
        without, without_again, with_challenger = (
            [loads[variant][key] for loads in rounds] for variant in (WITHOUT, WITHOUT_AGAIN, WITH)
        )
        means = [sum(pair) / 2 for pair in zip(without, without_again, strict=True)]
        ratios += [
            lower_is_better(
                f"{load_name}, with a challenger: {name}",
                with_challenger,
                "ms",
                against="without",
                baselines=means,
                goal=goal,
            ),
            lower_is_better(
                f"{load_name}, control, again without: {name}",
                without_again,
                "ms",
                against="without",
                baselines=without,
            ),
        ]
    return ratios


def _run_round(setup: ServingSetup, side: Side, rate: float, number: int) -> Loads:
    """Run one load with the challenger and two loads without it. `number` determines the order of the loads."""
    variants, loads = deque([WITHOUT, WITH, WITHOUT_AGAIN]), {}
    variants.rotate(number)
    for variant in variants:
        _set_challenger(setup, VERSIONS[1] if variant == WITH else None)
        loads[variant] = load(side.port, side.path, side.bodies, connections=CONNECTIONS, seconds=SECONDS, rate=rate)
        assert set(loads[variant]["statuses"]) == {"200"}, loads[variant]
    print(f"round {number + 1}, {rate:.0f}/s: {json.dumps(loads)}", flush=True)
    return loads


def _set_challenger(setup: ServingSetup, version: int | None) -> None:
    """Make `version` the challenger, and wait until every worker has it."""
    row = {"model": MODEL, "version": version, "artifact_sha256": version and setup.sha256[version]}
    with session(setup.settings, "pipeline") as connection:
        history.add(connection, shadow, {**row, "caused_by": "benchmark", "created_at": utc_now()})

    def is_loaded() -> bool:
        with session(setup.settings, "reader") as connection:
            return [row["shadow_version"] for row in deployments.instances(connection, MODEL)] == [version] * WORKERS

    wait_for(f"challenger {version}", is_loaded)


def _count_shadow_rows(setup: ServingSetup) -> int:
    with session(setup.settings, "reader") as connection:
        return int(
            connection.exec_driver_sql("SELECT COUNT(*) FROM prediction_log WHERE role = 'shadow'").scalar() or 0
        )
