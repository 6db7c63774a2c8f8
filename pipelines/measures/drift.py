"""Drift: whether the rows of a window come from another distribution than the rows a version was fitted on.

Pure. A significance test alone alarms at any large window, and an effect size alone at any small one, so a feature
drifts only where both agree: Pearson's chi-square over the profile's bins, with the false discovery rate held at `q`
over all features, and a stability index above what matters and above what the training period's own windows showed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency

from pipelines.artifact.profile import psi, reference
from pipelines.spec import Drift

PREDICTION = "(prediction)"  # no feature can have this name
ORDINARY = 3  # how many times the training period's own 95th percentile a stability index must exceed
EXPECTED = 5  # counts; bins that expect fewer are tested together


@dataclass(frozen=True, slots=True)
class Difference:
    """One feature, or the prediction, of a window against its reference.

    psi: corrected stability index. limit: what it must exceed. q_value: the smallest false discovery rate at which the
    feature would be found, in [0, 1].
    """

    psi: float
    limit: float
    q_value: float
    drifted: bool


def measure_drift(
    profile: Mapping[str, Any],
    found: Mapping[str, np.ndarray],
    *,
    policy: Drift,
    base: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Difference]:
    """Each feature of `found` against `profile`, the prediction too: it is one hypothesis more.

    `found` has counts in the order of `profile.counts`, by feature name and under `PREDICTION`. `base` gives other
    counts over the same bins to compare with, as those of the newest training rows; its names are then all there is.
    """
    entries = {**profile["features"], PREDICTION: profile["prediction"]}
    names = [name for name in entries if name in found and (base is None or name in base)]
    expected = {name: reference(entries[name]) if base is None else base[name] for name in names}
    q_values = benjamini_hochberg([p_value(expected[name], found[name]) for name in names])
    differences = {}
    for name, q_value in zip(names, q_values, strict=True):
        index = psi(expected[name], found[name])
        limit = max(policy.psi, ORDINARY * float(entries[name].get("psi_95", 0.0)))
        differences[name] = Difference(index, limit, q_value, q_value <= policy.q and index > limit)
    return differences


def p_value(expected: np.ndarray, found: np.ndarray) -> float:
    """The chance of two samples of one distribution being as different as two count vectors over the same bins.

    Pearson's chi-square test of homogeneity, as scipy computes it. Bins that expect fewer than five counts in either
    sample are pooled, for the approximation does not hold for them (Cochran 1954). 1 where there is nothing to compare.
    """
    table = np.array([expected, found], dtype=float)
    totals = table.sum(axis=1)
    if not totals.all():
        return 1.0
    rare = table.sum(axis=0) * totals.min() / totals.sum() < EXPECTED
    pooled = np.column_stack((table[:, ~rare], table[:, rare].sum(axis=1)))
    pooled = pooled[:, pooled.sum(axis=0) > 0]
    if pooled.shape[1] < 2:
        return 1.0
    return float(chi2_contingency(pooled, correction=False).pvalue)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """For each p-value the least false discovery rate at which it is rejected (Benjamini and Hochberg 1995).

    The k-th smallest of m becomes min over j ≥ k of p_j · m / j, at most 1.
    """
    m = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * m / np.arange(1, m + 1)
    q_values = np.empty(m)
    q_values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return [float(q) for q in q_values]


def worst_first(differences: Mapping[str, Difference]) -> list[str]:
    """Names of what drifted, those that exceed their limit by the largest factor first."""
    drifted = [name for name, difference in differences.items() if difference.drifted]
    return sorted(drifted, key=lambda name: -differences[name].psi / differences[name].limit)
