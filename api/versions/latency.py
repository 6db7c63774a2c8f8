"""The check that a version is fast enough, before it serves. The measurement also warms the version up."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipelines.artifact.bundle import Bundle
from pipelines.artifact.learner import pool_from_rows, score
from utils.errors import TooSlow

ROUNDS = 7  # the first one warms up; the median of the rest, so that a short load on the machine refuses no good model
BUDGET = 3.0  # seconds after which the current round is the last one: the version is slow enough to judge
# A version may take five times as long as the serving version, and 5 ms a row in any case. This is some fifty times as
# long as a usual model takes, and half of a request's time at 300 requests a second.
RATIO, FLOOR = 5.0, 0.005
# A batch of 512 rows must not take longer than the timeout of a request, 10 s. That is 20 ms a row in a batch.
# A first version has only this limit, because it can't be compared.
LIMIT = 0.020


@dataclass(frozen=True, slots=True)
class Latency:
    """Median seconds a row.

    alone: of rows scored one by one.
    together: of all golden rows scored in one batch.
    """

    alone: float
    together: float


def check_latency(bundle: Bundle, *, serving: Bundle | None) -> None:
    """Score the golden rows of `bundle` one by one and in a batch, and compare its latency with `serving`.

    `serving` is None if nothing serves or the serving version takes other rows. Both bundles are measured in turns, so
    that other load on the machine slows both.

    Raises: TooSlow.
    """
    latency, *baselines = measure([bundle, serving] if serving else [bundle], bundle.golden["rows"])
    if reason := too_slow(latency, against=baselines[0] if baselines else None):
        raise TooSlow(reason=reason)


def measure(bundles: Sequence[Bundle], rows: Sequence[Sequence[Any]]) -> list[Latency]:
    """The latency of each of `bundles` on `rows`, with one thread like the scoring of requests."""
    alone: list[list[float]] = [[] for _ in bundles]
    together: list[list[float]] = [[] for _ in bundles]
    began = time.perf_counter()
    for turn in range(ROUNDS):
        for place, bundle in enumerate(bundles):
            batch, singles = _seconds(bundle, rows) / len(rows), [_seconds(bundle, [row]) for row in rows]
            if turn or time.perf_counter() - began > BUDGET:
                alone[place] += singles
                together[place].append(batch)
        if all(together) and time.perf_counter() - began > BUDGET:
            break
    return [Latency(median(singles), median(batches)) for singles, batches in zip(alone, together, strict=True)]


def too_slow(latency: Latency, *, against: Latency | None) -> str | None:
    """The reason why a version with `latency` must not replace a version with the latency `against`, or None."""
    if latency.together > LIMIT:
        return f"{_ms(latency.together)} a row in a batch, more than {_ms(LIMIT)}: its batches would time out"
    if against is None:
        return None
    for shape, seconds, baseline in (
        ("a row by itself", latency.alone, against.alone),
        ("a row in a batch", latency.together, against.together),
    ):
        if seconds > max(FLOOR, RATIO * baseline):
            return f"{_ms(seconds)} for {shape}, {seconds / baseline:.0f} times the {_ms(baseline)} of what serves"
    return None


def _seconds(bundle: Bundle, rows: Sequence[Sequence[Any]]) -> float:
    """The processor time of this thread for `rows`. Requests that run at the same time do not count."""
    began = time.thread_time()
    score(bundle.model, pool_from_rows(rows, spec=bundle.spec), spec=bundle.spec, threads=1)
    return time.thread_time() - began


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
