"""Columns of a file that seem to hold the answer itself: they are proposed as comments, not as features."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.init.column_facts import Facts, Floats

ROWS = 50_000  # that are looked at
FEWEST_FOR_LEAKS = 100  # rows; chance makes leaks of fewer
BINS = 200
NEARLY = 0.99
EXACT = 1e-9  # of the label's variance

Ints = NDArray[np.int64]


def suspects(label: Facts, columns: Sequence[Facts], *, task: str) -> dict[str, str]:
    """File names of the columns that tell the label nearly perfectly, alone or added up, and how well they do."""
    known = np.flatnonzero(label.text.is_valid().to_numpy(zero_copy_only=False))[:ROWS]
    if len(known) < FEWEST_FOR_LEAKS:
        return {}
    found: dict[str, str] = {}
    if task == "regression" and label.numbers is not None:
        target = label.numbers[known]
        found |= _adding_up(target, {c.file_name: c.numbers[known] for c in columns if c.numbers is not None})
    else:
        target = _codes(label, known, of_numbers=False).astype(np.float64)
    for column in columns:
        if (
            column.file_name in found
            or not column.distinct >= 2
            or (column.numbers is None and column.distinct > len(known) / 2)
        ):
            continue
        codes = _codes(column, known, of_numbers=column.numbers is not None)
        share = _explained(codes, target) if task == "regression" else _told(codes, target.astype(np.int64))
        if share >= NEARLY:
            found[column.file_name] = f"tells {share:.1%} of {label.file_name} alone"
    return found


def _adding_up(target: Floats, columns: dict[str, Floats]) -> dict[str, str]:
    """The columns whose weighted sum is the target, found by least squares: all others have no weight in it."""
    usable = {name: values for name, values in columns.items() if np.isfinite(values).all() and np.ptp(values) > 0}
    if not usable or not np.ptp(target):
        return {}
    matrix = np.column_stack([(values - values.mean()) / values.std() for values in usable.values()])
    centred = target - target.mean()
    weights, *_ = np.linalg.lstsq(matrix, centred, rcond=None)
    if np.sum((centred - matrix @ weights) ** 2) > EXACT * np.sum(centred**2):
        return {}
    parts = [name for name, weight in zip(usable, weights, strict=True) if abs(weight) > 1e-3 * centred.std()]
    listed = " and ".join(parts) if len(parts) < 5 else f"{len(parts)} columns like it"
    return dict.fromkeys(parts, f"{listed} add up to the label" if len(parts) > 1 else "is the label in other units")


def _codes(column: Facts, rows: Ints, *, of_numbers: bool) -> Ints:
    """A small whole number for each row: its bin, or its value; blanks have one of their own."""
    if of_numbers and column.numbers is not None:
        values = column.numbers[rows]
        edges = (
            np.unique(np.nanquantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
            if np.isfinite(values).any()
            else np.zeros(0)
        )
        return np.where(np.isnan(values), 0, np.searchsorted(edges, values, side="right") + 1).astype(np.int64)
    coded = column.text.take(rows).dictionary_encode()
    return np.asarray(coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False), dtype=np.int64)


def _told(codes: Ints, classes: Ints) -> float:
    """Share of rows whose class the codes of the other half of them tell; 0 where guessing does nearly as well."""
    first, second = slice(0, None, 2), slice(1, None, 2)
    counts = np.zeros((codes.max() + 1, classes.max() + 1), dtype=np.int64)
    np.add.at(counts, (codes[first], classes[first]), 1)
    often = int(np.bincount(classes[first]).argmax())
    best = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), often)
    right = float(np.mean(best[codes[second]] == classes[second]))
    guessed = float(np.mean(classes[second] == often))
    return right if 1 - right <= 0.1 * (1 - guessed) else 0.0


def _explained(codes: Ints, target: Floats) -> float:
    """Share of the target's variance that the means by code of the other half of the rows explain."""
    first, second = slice(0, None, 2), slice(1, None, 2)
    counts = np.bincount(codes[first], minlength=codes.max() + 1)
    sums = np.bincount(codes[first], weights=target[first], minlength=codes.max() + 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), target[first].mean())
    variance = float(np.var(target[second]))
    return 1 - float(np.mean((target[second] - means[codes[second]]) ** 2)) / variance if variance else 0.0
