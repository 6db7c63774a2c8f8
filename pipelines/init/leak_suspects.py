"""Columns of a file that seem to contain the label. The draft lists them as comments, not as features."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.init.column_facts import Facts, Floats

ROWS = 50_000  # the number of labelled rows examined
FEWEST_FOR_LEAKS = 100  # rows; with fewer, leaks appear by chance
BINS = 200
NEARLY = 0.99
EXACT = 1e-9  # of the label's variance

Ints = NDArray[np.int64]


def suspects(label: Facts, columns: Sequence[Facts], *, task: str) -> dict[str, str]:
    """The columns that predict the label nearly perfectly, alone or added up: name in the file to the evidence."""
    labelled = np.flatnonzero(label.text.is_valid().to_numpy(zero_copy_only=False))[:ROWS]
    if len(labelled) < FEWEST_FOR_LEAKS:
        return {}
    evidence: dict[str, str] = {}
    if task == "regression" and label.numbers is not None:
        target = label.numbers[labelled]
        evidence |= _adding_up(target, {c.file_name: c.numbers[labelled] for c in columns if c.numbers is not None})
    else:
        target = _codes(label, labelled, of_numbers=False).astype(np.float64)
    for column in columns:
        if (
            column.file_name in evidence
            or not column.distinct >= 2
            or (column.numbers is None and column.distinct > len(labelled) / 2)
        ):
            continue
        codes = _codes(column, labelled, of_numbers=column.numbers is not None)
        share = (
            _share_explained(codes, target) if task == "regression" else _share_right(codes, target.astype(np.int64))
        )
        if share >= NEARLY:
            evidence[column.file_name] = f"tells {share:.1%} of {label.file_name} alone"
    return evidence


def _adding_up(target: Floats, columns: dict[str, Floats]) -> dict[str, str]:
    """The columns whose weighted sum is the target, by least squares. Other columns have no weight in the sum."""
    usable = {name: values for name, values in columns.items() if np.isfinite(values).all() and np.ptp(values) > 0}
    if not usable or not np.ptp(target):
        return {}
    matrix = np.column_stack([(values - values.mean()) / values.std() for values in usable.values()])
    centred = target - target.mean()
    weights, *_ = np.linalg.lstsq(matrix, centred, rcond=None)
    if np.sum((centred - matrix @ weights) ** 2) > EXACT * np.sum(centred**2):
        return {}
    parts = [name for name, weight in zip(usable, weights, strict=True) if abs(weight) > 1e-3 * centred.std()]
    columns_text = " and ".join(parts) if len(parts) < 5 else f"{len(parts)} columns like it"
    return dict.fromkeys(
        parts, f"{columns_text} add up to the label" if len(parts) > 1 else "is the label in other units"
    )


def _codes(column: Facts, rows: Ints, *, of_numbers: bool) -> Ints:
    """A small integer for each row, which stands for its bin or its value. Blanks have a code of their own."""
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


def _share_right(codes: Ints, classes: Ints) -> float:
    """The share of classes in one half of the rows that the codes of the other half predict.

    It is 0 if guessing the most frequent class is nearly as good.
    """
    first, second = slice(0, None, 2), slice(1, None, 2)
    counts = np.zeros((codes.max() + 1, classes.max() + 1), dtype=np.int64)
    np.add.at(counts, (codes[first], classes[first]), 1)
    most_frequent = int(np.bincount(classes[first]).argmax())
    best_class = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), most_frequent)
    share_right = float(np.mean(best_class[codes[second]] == classes[second]))
    share_guessed = float(np.mean(classes[second] == most_frequent))
    return share_right if 1 - share_right <= 0.1 * (1 - share_guessed) else 0.0


def _share_explained(codes: Ints, target: Floats) -> float:
    """The share of the target's variance in one half of the rows that the means by code of the other half explain."""
    first, second = slice(0, None, 2), slice(1, None, 2)
    counts = np.bincount(codes[first], minlength=codes.max() + 1)
    sums = np.bincount(codes[first], weights=target[first], minlength=codes.max() + 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), target[first].mean())
    variance = float(np.var(target[second]))
    return 1 - float(np.mean((target[second] - means[codes[second]]) ** 2)) / variance if variance else 0.0
