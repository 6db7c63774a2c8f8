"""Drift: whether the rows of a window come from another distribution than the rows a version was fitted on.

Pure. A significance test alone raises an alarm at any large window, and an effect size alone at any small window. So a
feature drifts only where both agree: Pearson's chi-square over the profile's bins, with the false discovery rate held
at `q` over all features, and a stability index above the policy's limit and above the indices of the training
period's own windows.
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
EXPECTED = 5  # counts; bins that expect fewer are pooled


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of one feature, or of the prediction, between a window and its reference.

    psi: the corrected stability index.
    limit: the index above which the feature may drift.
    q_value: the smallest false discovery rate at which the difference is significant, in [0, 1].
    drifted: whether both the index and the q-value pass their limits.
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
    """Compare each feature of `window`, and the prediction as one more hypothesis, with `profile`.

    window: counts in the order of `profile.counts`, by feature name and under `PREDICTION`.
    base: other counts over the same bins to compare with, for example of the newest training rows. Only names in
        `base` are then compared.
    """
    entries = {**profile["features"], PREDICTION: profile["prediction"]}
    names = [name for name in entries if name in window and (base is None or name in base)]
    expected = {name: reference(entries[name]) if base is None else base[name] for name in names}
    q_values = benjamini_hochberg([p_value(expected[name], window[name]) for name in names])
    differences = {}
    for name, q_value in zip(names, q_values, strict=True):
        index = psi(expected[name], window[name])
        limit = max(policy.psi, ORDINARY * float(entries[name].get("psi_95", 0.0)))
        differences[name] = Difference(index, limit, q_value, q_value <= policy.q and index > limit)
    return differences


def p_value(expected: np.ndarray, observed: np.ndarray) -> float:
    """The chance that two samples of one distribution differ as much as two count vectors over the same bins.

    This is Pearson's chi-square test of homogeneity, computed by scipy. Bins that expect fewer than five counts in
    either sample are pooled, because the approximation does not hold for them (Cochran 1954). The result is 1 where
    there is nothing to compare.
    """
    table = np.array([expected, observed], dtype=float)
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
    """The least false discovery rate at which each p-value is rejected (Benjamini and Hochberg 1995).

    The k-th smallest of m becomes min over j ≥ k of p_j · m / j, at most 1.
    """
    m = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * m / np.arange(1, m + 1)
    q_values = np.empty(m)
    q_values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return [float(q) for q in q_values]


def worst_first(differences: Mapping[str, Difference]) -> list[str]:
    """The names of the drifted features. The one that exceeds its limit by the largest factor comes first."""
    drifted = [name for name, difference in differences.items() if difference.drifted]
    return sorted(drifted, key=lambda name: -differences[name].psi / differences[name].limit)
