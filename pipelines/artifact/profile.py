"""The reference profile: how every feature and the prediction were distributed where a version was fitted.

Drift of a later window is measured against it. A distribution is a list of counts over fixed bins or categories, with
missing values as a bin of their own.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from pipelines.spec import ModelSpec

BINS = 10
CATEGORIES = 30  # the rest share one bin
OTHER = "(other)"
QUANTILE = 0.95


def build_profile(
    frame: pd.DataFrame, predictions: Sequence[str] | Sequence[float], *, spec: ModelSpec
) -> dict[str, Any]:
    """The profile of the fitted rows. `frame` has event_time and the features, `predictions` one value a row.

    `psi_95` of a feature is how far it strays from its own distribution without any drift: the 95th percentile of the
    corrected PSI of the period's own disjoint windows, 0 where there are fewer than two.
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
    bins, places = _places(values, entry)
    return np.bincount(places, minlength=bins + 1)


def reference(entry: dict[str, Any]) -> np.ndarray:
    """The counts that `entry` recorded, in the order of `counts`."""
    inner = entry["counts"] if "edges" in entry else list(entry["categories"].values())
    return np.array([*inner, entry["missing"]])


def seen_categories(profile: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """By feature, every category that training saw; without the features whose rarer categories were counted as one."""
    found: dict[str, frozenset[str]] = {}
    for name, entry in profile.get("features", {}).items():
        categories = entry.get("categories")
        if categories and not categories.get(OTHER):
            found[name] = frozenset(categories) - {OTHER}
    return found


def warnings_of(spec: ModelSpec, seen: Mapping[str, frozenset[str]]) -> Callable[[Sequence[Any]], list[str]]:
    """What tells the doubts about a row with a value for each feature: those missing (None), categories never seen."""
    names = list(spec.features.columns)
    known = [(place, seen[name]) for place, name in enumerate(names) if name in seen]

    def told(values: Sequence[Any]) -> list[str]:
        unseen = {place for place, categories in known if values[place] not in categories}
        if not unseen and None not in values:
            return []
        return [
            f"missing: {name}" if value is None else f"unseen category: {name}"
            for place, (name, value) in enumerate(zip(names, values, strict=True))
            if value is None or place in unseen
        ]

    return told


def psi(expected: np.ndarray, found: np.ndarray) -> float:
    """Population stability index of two count vectors over the same bins, corrected for its small-sample bias.

    PSI = Σ (p − q)·ln(p / q), with half a count added to every bin so that an empty one stays finite. Two samples of
    one distribution average (B − 1)(1/n + 1/m) (Yurdakul and Naranjo 2020); that is taken off, down to 0 at least.
    """
    used = (expected + found) > 0
    n, m, bins = int(expected.sum()), int(found.sum()), int(used.sum())
    if bins < 2 or not n or not m:
        return 0.0
    p = (expected[used] + 0.5) / (n + 0.5 * bins)
    q = (found[used] + 0.5) / (m + 0.5 * bins)
    raw = float(np.sum((p - q) * np.log(p / q)))
    return max(0.0, raw - (bins - 1) * (1 / n + 1 / m))


def _entry(values: pd.Series, kind: str, windows: Sequence[np.ndarray]) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": kind, "missing": int(values.isna().sum())}
    if kind == "categorical":
        seen = values.dropna().astype(str).value_counts()
        kept = {str(name): int(count) for name, count in seen.head(CATEGORIES).items()}
        entry["categories"] = {**kept, OTHER: int(seen.iloc[CATEGORIES:].sum())}
    else:
        numbers = _numbers(values, kind)
        quantiles = np.nanquantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]) if (~np.isnan(numbers)).any() else []
        entry["edges"] = sorted({float(edge) for edge in quantiles})
        entry["counts"] = []
        entry["counts"] = [int(count) for count in counts(values, entry)[:-1]]
    whole = reference(entry)
    bins, places = _places(values, entry)
    strays = [
        psi(whole - inside, inside) for inside in (np.bincount(places[rows], minlength=bins + 1) for rows in windows)
    ]
    entry["psi_95"] = float(np.quantile(strays, QUANTILE)) if len(strays) > 1 else 0.0
    return entry


def _places(values: pd.Series, entry: dict[str, Any]) -> tuple[int, np.ndarray]:
    """How many bins `entry` has, and the bin of each value: 0 for the first, as many as there are for a missing one."""
    if "edges" in entry:
        bins = len(entry["edges"]) + 1
        numbers = _numbers(values, entry["kind"])
        places = np.searchsorted(entry["edges"], numbers, side="right")
        missing = np.isnan(numbers)
    else:
        listed = pd.Index([name for name in entry["categories"] if name != OTHER], dtype=object)
        bins = len(listed) + 1
        places = listed.get_indexer(values.astype(str).to_numpy(dtype=object))
        places[places < 0] = bins - 1  # the bin of all others
        missing = values.isna().to_numpy()
    places[missing] = bins
    return bins, places


def _numbers(values: pd.Series, kind: str) -> np.ndarray:
    """Text is profiled by its number of comma- or space-separated words; missing text stays missing."""
    words = values.map(lambda text: len(re.split(r"[,\s]+", text)), na_action="ignore") if kind == "text" else values
    return np.asarray(words.astype(float))


def _windows(times: pd.Series, *, length: timedelta, min_rows: int) -> Iterator[np.ndarray]:
    """Positions of the rows of each disjoint window of `length`; a window below `min_rows` is merged with the next."""
    if times.empty or times.min() == times.max():
        return
    numbers = ((times - times.min()) // pd.Timedelta(length)).to_numpy()
    order = np.argsort(numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    gathered: list[np.ndarray] = []
    for part in np.split(order, bounds):
        gathered.append(part)
        if sum(map(len, gathered)) >= min_rows:
            yield np.concatenate(gathered)
            gathered = []
