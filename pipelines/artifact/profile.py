"""The reference profile: how the features and the prediction are distributed in the rows a version was fitted on.

Drift is the difference between a later window and the profile. A distribution is a list of counts, one per bin or
category, and one for missing values.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from pipelines.spec import ModelSpec

BINS = 10  # of a numeric feature
MOST_CATEGORIES = 30  # rarer categories share one bin
OTHER = "(other)"
PSI_QUANTILE = 0.95


def build_profile(
    frame: pd.DataFrame, predictions: Sequence[str] | Sequence[float], *, spec: ModelSpec
) -> dict[str, Any]:
    """Build the profile of the rows that a version was fitted on.

    `psi_95` of a feature shows how much its distribution varies without drift. The training period is divided into
    disjoint windows. `psi_95` is the 95th percentile of their corrected stability indices, or 0 with fewer than two
    windows.

    frame: event_time and the features.
    predictions: one prediction per row of `frame`.
    """
    columns = {name: frame[name] for name in spec.features.columns}
    kinds = {name: feature.type for name, feature in spec.features.columns.items()}
    windows = list(
        _split_into_windows(frame["event_time"], length=spec.monitoring.window, min_rows=spec.monitoring.min_rows)
    )
    features = {name: _build_entry(columns[name], kind, windows) for name, kind in kinds.items()}
    predicted = pd.Series(list(predictions), index=frame.index)
    kind = "numeric" if spec.task == "regression" else "categorical"
    return {
        "rows": len(frame),
        "windows": len(windows),
        "features": features,
        "prediction": _build_entry(predicted, kind, windows),
    }


def count_by_bin(values: pd.Series, entry: dict[str, Any]) -> np.ndarray:
    """Count `values` by bin. Return (bins + 1,) integers, the count of missing values last.

    entry: the part of a profile that describes the feature.
    """
    bins, indices = _assign_bins(values, entry)
    return np.bincount(indices, minlength=bins + 1)


def recorded_counts(entry: dict[str, Any]) -> np.ndarray:
    """The counts that `entry` has recorded, in the order of `count_by_bin`."""
    bin_counts = entry["counts"] if "edges" in entry else list(entry["categories"].values())
    return np.array([*bin_counts, entry["missing"]])


def seen_categories(profile: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The categories that occurred in training, by feature. Features with more than 30 categories are left out."""
    categories_by_feature: dict[str, frozenset[str]] = {}
    for name, entry in profile.get("features", {}).items():
        categories = entry.get("categories")
        if categories and not categories.get(OTHER):
            categories_by_feature[name] = frozenset(categories) - {OTHER}
    return categories_by_feature


def make_warnings_function(
    spec: ModelSpec, known_categories: Mapping[str, frozenset[str]]
) -> Callable[[Sequence[Any]], list[str]]:
    """Make a function that returns the warnings about a row: its missing values and its unseen categories.

    known_categories: the categories in training, by feature (`seen_categories`).
    """
    names = list(spec.features.columns)
    checked_features = [(index, known_categories[name]) for index, name in enumerate(names) if name in known_categories]

    def row_warnings(values: Sequence[Any]) -> list[str]:
        unseen = {index for index, categories in checked_features if values[index] not in categories}
        if not unseen and None not in values:
            return []
        return [
            f"missing: {name}" if value is None else f"unseen category: {name}"
            for index, (name, value) in enumerate(zip(names, values, strict=True))
            if value is None or index in unseen
        ]

    return row_warnings


def psi(expected: np.ndarray, actual: np.ndarray) -> float:
    """Population stability index (PSI) of two count vectors over the same bins, corrected for its small-sample bias.

    PSI = Σ (p − q)·ln(p / q). Half a count is added to every bin, so that empty bins have a finite term. Two samples of
    n and m rows from one distribution over B bins have a mean PSI of (B − 1)(1/n + 1/m) (Yurdakul and Naranjo 2020).
    This mean is subtracted. The result is at least 0.
    """
    is_occupied = (expected + actual) > 0
    n, m, bins = int(expected.sum()), int(actual.sum()), int(is_occupied.sum())
    if bins < 2 or not n or not m:
        return 0.0
    p = (expected[is_occupied] + 0.5) / (n + 0.5 * bins)
    q = (actual[is_occupied] + 0.5) / (m + 0.5 * bins)
    uncorrected = float(np.sum((p - q) * np.log(p / q)))
    return max(0.0, uncorrected - (bins - 1) * (1 / n + 1 / m))


def _build_entry(values: pd.Series, kind: str, windows: Sequence[np.ndarray]) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": kind, "missing": int(values.isna().sum())}
    if kind == "categorical":
        frequencies = values.dropna().astype(str).value_counts()
        common_counts = {str(name): int(count) for name, count in frequencies.head(MOST_CATEGORIES).items()}
        entry["categories"] = {**common_counts, OTHER: int(frequencies.iloc[MOST_CATEGORIES:].sum())}
    else:
        numbers = _to_numbers(values, kind)
        quantiles = np.nanquantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]) if (~np.isnan(numbers)).any() else []
        entry["edges"] = sorted({float(edge) for edge in quantiles})
        entry["counts"] = []
        entry["counts"] = [int(count) for count in count_by_bin(values, entry)[:-1]]
    all_counts = recorded_counts(entry)
    bins, indices = _assign_bins(values, entry)
    window_psis = [
        psi(all_counts - window_counts, window_counts)
        for window_counts in (np.bincount(indices[rows], minlength=bins + 1) for rows in windows)
    ]
    entry["psi_95"] = float(np.quantile(window_psis, PSI_QUANTILE)) if len(window_psis) > 1 else 0.0
    return entry


def _assign_bins(values: pd.Series, entry: dict[str, Any]) -> tuple[int, np.ndarray]:
    """Return the number of bins of `entry`, and the bin of each value, from 0. Missing values get the next number."""
    if "edges" in entry:
        bins = len(entry["edges"]) + 1
        numbers = _to_numbers(values, entry["kind"])
        indices = np.searchsorted(entry["edges"], numbers, side="right")
        is_missing = np.isnan(numbers)
    else:
        categories = pd.Index([name for name in entry["categories"] if name != OTHER], dtype=object)
        bins = len(categories) + 1
        indices = categories.get_indexer(values.astype(str).to_numpy(dtype=object))
        indices[indices < 0] = bins - 1  # the bin of all other categories
        is_missing = values.isna().to_numpy()
    indices[is_missing] = bins
    return bins, indices


def _to_numbers(values: pd.Series, kind: str) -> np.ndarray:
    """The values as numbers, NaN where a value is missing. The number of a text is its count of words."""
    if kind == "text":
        values = values.map(lambda text: len(re.split(r"[,\s]+", text)), na_action="ignore")
    return np.asarray(values.astype(float))


def _split_into_windows(times: pd.Series, *, length: timedelta, min_rows: int) -> Iterator[np.ndarray]:
    """Yield the positions of the rows of each disjoint window of `length`, in the order of time.

    A window with fewer than `min_rows` rows is joined with the next window.
    """
    if times.empty or times.min() == times.max():
        return
    window_numbers = ((times - times.min()) // pd.Timedelta(length)).to_numpy()
    order = np.argsort(window_numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(window_numbers[order])) + 1
    joined_windows: list[np.ndarray] = []
    for window in np.split(order, bounds):
        joined_windows.append(window)
        if sum(map(len, joined_windows)) >= min_rows:
            yield np.concatenate(joined_windows)
            joined_windows = []
