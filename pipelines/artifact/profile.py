"""The reference profile: the distributions of the features and the prediction in the rows a version was fitted on.

The drift of later windows is measured against the profile. A distribution is a list of counts over fixed bins or
categories, with a separate bin for missing values.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from pipelines.spec import ModelSpec

BINS = 10
CATEGORIES = 30  # rarer categories share one bin
OTHER = "(other)"
QUANTILE = 0.95


def build_profile(
    frame: pd.DataFrame, predictions: Sequence[str] | Sequence[float], *, spec: ModelSpec
) -> dict[str, Any]:
    """The profile of the fitted rows. `frame` has event_time and the features, `predictions` one value a row.

    `psi_95` of a feature is the ordinary variation of its distribution without drift: the 95th percentile of the
    corrected PSI of the period's own disjoint windows. It is 0 if there are fewer than two windows.
    """
    columns = {name: frame[name] for name in spec.features.columns}
    kinds = {name: feature.type for name, feature in spec.features.columns.items()}
    windows = list(_windows(frame["event_time"], length=spec.monitoring.window, min_rows=spec.monitoring.min_rows))
    features = {name: _entry(columns[name], kind, windows) for name, kind in kinds.items()}
    predicted = pd.Series(list(predictions), index=frame.index)
    kind = "numeric" if spec.task == "regression" else "categorical"
    return {
        "rows": len(frame),
        "windows": len(windows),
        "features": features,
        "prediction": _entry(predicted, kind, windows),
    }


def counts(values: pd.Series, entry: dict[str, Any]) -> np.ndarray:
    """Counts of `values` over the bins of a profile's `entry`, the missing ones last: (bins + 1,) integers."""
    bins, indices = _bins_of(values, entry)
    return np.bincount(indices, minlength=bins + 1)


def reference(entry: dict[str, Any]) -> np.ndarray:
    """The counts recorded in `entry`, in the order of `counts`."""
    inner = entry["counts"] if "edges" in entry else list(entry["categories"].values())
    return np.array([*inner, entry["missing"]])


def seen_categories(profile: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The categories in training by feature. Features whose rarer categories share one bin are left out."""
    categories_of: dict[str, frozenset[str]] = {}
    for name, entry in profile.get("features", {}).items():
        categories = entry.get("categories")
        if categories and not categories.get(OTHER):
            categories_of[name] = frozenset(categories) - {OTHER}
    return categories_of


def warnings_of(
    spec: ModelSpec, known_categories: Mapping[str, frozenset[str]]
) -> Callable[[Sequence[Any]], list[str]]:
    """Return a function that lists the warnings about a row of feature values: missing values and unseen categories."""
    names = list(spec.features.columns)
    checked = [(index, known_categories[name]) for index, name in enumerate(names) if name in known_categories]

    def row_warnings(values: Sequence[Any]) -> list[str]:
        unseen = {index for index, categories in checked if values[index] not in categories}
        if not unseen and None not in values:
            return []
        return [
            f"missing: {name}" if value is None else f"unseen category: {name}"
            for index, (name, value) in enumerate(zip(names, values, strict=True))
            if value is None or index in unseen
        ]

    return row_warnings


def psi(expected: np.ndarray, actual: np.ndarray) -> float:
    """Population stability index of two count vectors over the same bins, corrected for its small-sample bias.

    PSI = Σ (p − q)·ln(p / q), with half a count added to every bin, so that empty bins stay finite. Two samples of the
    same distribution have a mean PSI of (B − 1)(1/n + 1/m) (Yurdakul and Naranjo 2020). It is subtracted, down to 0.
    """
    occupied = (expected + actual) > 0
    n, m, bins = int(expected.sum()), int(actual.sum()), int(occupied.sum())
    if bins < 2 or not n or not m:
        return 0.0
    p = (expected[occupied] + 0.5) / (n + 0.5 * bins)
    q = (actual[occupied] + 0.5) / (m + 0.5 * bins)
    raw = float(np.sum((p - q) * np.log(p / q)))
    return max(0.0, raw - (bins - 1) * (1 / n + 1 / m))


def _entry(values: pd.Series, kind: str, windows: Sequence[np.ndarray]) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": kind, "missing": int(values.isna().sum())}
    if kind == "categorical":
        frequencies = values.dropna().astype(str).value_counts()
        common = {str(name): int(count) for name, count in frequencies.head(CATEGORIES).items()}
        entry["categories"] = {**common, OTHER: int(frequencies.iloc[CATEGORIES:].sum())}
    else:
        numbers = _numbers(values, kind)
        quantiles = np.nanquantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]) if (~np.isnan(numbers)).any() else []
        entry["edges"] = sorted({float(edge) for edge in quantiles})
        entry["counts"] = []
        entry["counts"] = [int(count) for count in counts(values, entry)[:-1]]
    whole = reference(entry)
    bins, indices = _bins_of(values, entry)
    window_psis = [
        psi(whole - window_counts, window_counts)
        for window_counts in (np.bincount(indices[rows], minlength=bins + 1) for rows in windows)
    ]
    entry["psi_95"] = float(np.quantile(window_psis, QUANTILE)) if len(window_psis) > 1 else 0.0
    return entry


def _bins_of(values: pd.Series, entry: dict[str, Any]) -> tuple[int, np.ndarray]:
    """The number of bins of `entry`, and the bin of each value, from 0. The next bin is for missing values."""
    if "edges" in entry:
        bins = len(entry["edges"]) + 1
        numbers = _numbers(values, entry["kind"])
        indices = np.searchsorted(entry["edges"], numbers, side="right")
        missing = np.isnan(numbers)
    else:
        categories = pd.Index([name for name in entry["categories"] if name != OTHER], dtype=object)
        bins = len(categories) + 1
        indices = categories.get_indexer(values.astype(str).to_numpy(dtype=object))
        indices[indices < 0] = bins - 1  # the bin of all other categories
        missing = values.isna().to_numpy()
    indices[missing] = bins
    return bins, indices


def _numbers(values: pd.Series, kind: str) -> np.ndarray:
    """The values as numbers. A text becomes its number of comma- or space-separated words. Missing stays missing."""
    words = values.map(lambda text: len(re.split(r"[,\s]+", text)), na_action="ignore") if kind == "text" else values
    return np.asarray(words.astype(float))


def _windows(times: pd.Series, *, length: timedelta, min_rows: int) -> Iterator[np.ndarray]:
    """Yield the positions of the rows of each disjoint window of `length`. Windows below `min_rows` join the next."""
    if times.empty or times.min() == times.max():
        return
    numbers = ((times - times.min()) // pd.Timedelta(length)).to_numpy()
    order = np.argsort(numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    merged: list[np.ndarray] = []
    for part in np.split(order, bounds):
        merged.append(part)
        if sum(map(len, merged)) >= min_rows:
            yield np.concatenate(merged)
            merged = []
