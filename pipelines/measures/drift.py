"""Drift: whether a window's values are distributed differently from the rows that a version was fitted on. Pure.

A significance test alone raises an alarm for every large window. An effect size alone raises an alarm for every small
window. So a feature drifts only if both conditions hold:

- Pearson's chi-square test over the profile's bins is significant. The false discovery rate over all features is `q`.
- The stability index is above the limit in the model file, and above the indices of windows of the training period.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency

from pipelines.artifact.profile import psi, recorded_counts
from pipelines.spec import Drift

PREDICTION = "(prediction)"  # no feature can have this name
PSI_FACTOR = 3  # a stability index must exceed this many times the 95th percentile of the training period's windows
LEAST_EXPECTED = 5  # bins with a smaller expected count are pooled


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of one feature, or of the prediction, between a window and its reference.

    psi: the corrected stability index.
    limit: the index above which the feature may drift.
    q_value: the smallest false discovery rate at which the difference is significant, in [0, 1].
    drifted: whether the index is above its limit and the q-value is not above `q`.
    """

    psi: float
    limit: float
    q_value: float
    drifted: bool


def measure_drift(
    profile: Mapping[str, Any],
    window: Mapping[str, np.ndarray],
    *,
    policy: Drift,
    base: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Difference]:
    """Compare each feature of a window, and the prediction, with the profile. Return the differences by name.

    window: counts in the order of `profile.count_by_bin`, by feature name and under `PREDICTION`.
    base: counts over the same bins that replace those of the profile, for example of the newest training rows. Then
        only names in `base` are compared.
    """
    entries = {**profile["features"], PREDICTION: profile["prediction"]}
    names = [name for name in entries if name in window and (base is None or name in base)]
    expected = {name: recorded_counts(entries[name]) if base is None else base[name] for name in names}
    q_values = benjamini_hochberg([p_value(expected[name], window[name]) for name in names])
    differences = {}
    for name, q_value in zip(names, q_values, strict=True):
        index = psi(expected[name], window[name])
        limit = max(policy.psi, PSI_FACTOR * float(entries[name].get("psi_95", 0.0)))
        differences[name] = Difference(index, limit, q_value, q_value <= policy.q and index > limit)
    return differences


def p_value(expected: np.ndarray, observed: np.ndarray) -> float:
    """The p-value of Pearson's chi-square test of homogeneity for two count vectors over the same bins.

    It is the probability that two samples from one distribution differ at least as much. Bins with an expected count
    below five in either sample are pooled, because the approximation does not hold for them (Cochran 1954). The result
    is 1 if a sample is empty or only one bin is left.
    """
    table = np.array([expected, observed], dtype=float)
    totals = table.sum(axis=1)
    if not totals.all():
        return 1.0
    rare = table.sum(axis=0) * totals.min() / totals.sum() < LEAST_EXPECTED
    pooled = np.column_stack((table[:, ~rare], table[:, rare].sum(axis=1)))
    pooled = pooled[:, pooled.sum(axis=0) > 0]
    if pooled.shape[1] < 2:
        return 1.0
    return float(chi2_contingency(pooled, correction=False).pvalue)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """The q-value of each p-value: the smallest false discovery rate at which its null hypothesis is rejected.

    The q-value of the k-th smallest of m p-values is min over j ≥ k of p_j · m / j, at most 1 (Benjamini and Hochberg
    1995).
    """
    m = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * m / np.arange(1, m + 1)
    q_values = np.empty(m)
    q_values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return [float(q) for q in q_values]


def worst_first(differences: Mapping[str, Difference]) -> list[str]:
    """The names of the drifted features. A feature that exceeds its limit by a larger factor comes earlier."""
    drifted = [name for name, difference in differences.items() if difference.drifted]
    return sorted(drifted, key=lambda name: -differences[name].psi / differences[name].limit)
