"""Whether a version answers fast enough to serve, measured before it does: it is warm then, too."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipelines.artifact.bundle import Bundle
from pipelines.artifact.learner import pool_from_rows, score
from utils.errors import TooSlow

ROUNDS = 7  # the first warms up; a median of the others, so that a machine busy for a moment refuses no good model
BUDGET = 3.0  # seconds after which a round is the last one: who is that slow is known to be
# A version may take five times what the one that serves takes, and whatever that is, 5 ms for a row: some fifty times
# what a usual model takes, and half of what a request may take at 300 a second.
RATIO, FLOOR = 5.0, 0.005
# A batch of 512 rows that takes longer than the 10 s of a request's timeout answers nobody: 20 ms a row, in a batch.
# A first version has nothing to be held against, and only this limit.
LIMIT = 0.020


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds a row, medians. `alone`: of rows scored one by one; `together`: of all golden rows in one batch."""

    alone: float
    together: float


def check_latency(bundle: Bundle, *, serving: Bundle | None) -> None:
    """Score the golden rows of `bundle` in both shapes, and with what serves, if anything takes the same rows.

    Both are measured in turns: what slows the machine slows both.

    Raises: TooSlow.
    """
    found, *others = measure([bundle, serving] if serving else [bundle], bundle.golden["rows"])
    if reason := too_slow(found, against=others[0] if others else None):
        raise TooSlow(reason=reason)


def measure(bundles: Sequence[Bundle], rows: Sequence[Sequence[Any]]) -> list[Latency]:
    """The latency of each of `bundles` on `rows`, with one thread, as a batch of requests is scored."""
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
    return [Latency(median(a), median(t)) for a, t in zip(alone, together, strict=True)]


def too_slow(found: Latency, *, against: Latency | None) -> str | None:
    """Why a version of latency `found` must not take the place of one with `against`; None where it may."""
    if found.together > LIMIT:
        return f"{_ms(found.together)} a row in a batch, more than {_ms(LIMIT)}: its batches would time out"
    if against is None:
        return None
    for shape, mine, other in (
        ("a row by itself", found.alone, against.alone),
        ("a row in a batch", found.together, against.together),
    ):
        if mine > max(FLOOR, RATIO * other):
            return f"{_ms(mine)} for {shape}, {mine / other:.0f} times the {_ms(other)} of what serves"
    return None


def _seconds(bundle: Bundle, rows: Sequence[Sequence[Any]]) -> float:
    """Of this thread's processor time: what requests meanwhile take of the processor, or wait for, is not in it."""
    began = time.thread_time()
    score(bundle.model, pool_from_rows(rows, spec=bundle.spec), spec=bundle.spec, threads=1)
    return time.thread_time() - began


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
