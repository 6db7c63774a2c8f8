"""Leaks: features that alone predict the label nearly perfectly, for example because they were written after it. Pure.

A feature's values become codes (its categories, or up to 256 bins of a number). Each row is scored by the labels that
rows of *other* entities with the same code have. So a code of a single entity predicts nothing, and one measure judges
numbers, categories, missing values and relations that rise and fall.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.measures.defects import FEWEST_ROWS
from pipelines.spec import ModelSpec

# For classes: the share of pairs of rows with different labels that a feature alone puts in order (AUC). For numbers:
# the share of the variance of the label's ranks that a feature alone explains (R²). Legitimate features stay below. The
# strongest features of the shipped models and of the examples' real data reach an AUC of 0.87 and an R² of 0.63, and
# the temperature of an hour ago explains 0.985 of the present temperature. A copied, scaled, rounded or coded label
# lies above.
LEAK = 0.99
FOLDS = 5
FOLD_SEED = 7  # assigns entities to folds; fixed, so that the same rows are always judged alike
BINS = 256
IN_A_BIN = 5  # least number of rows, so that a scored row has other rows in its bin

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """The labels and folds of a snapshot's n rows. An entity is in one fold, unless there are few entities.

    names: the names of the classes. Empty for a regression.
    folds: (n,).
    values: (n,) positions in `names`, or ranks in [0, 1] for a regression.
    """

    names: tuple[str, ...]
    folds: Ints
    values: NDArray[Any]

    def part(self, rows: NDArray[np.bool_]) -> "Target":
        return Target(self.names, self.folds[rows], self.values[rows])


def target_of(frame: pd.DataFrame, *, spec: ModelSpec) -> Target:
    """Return the target of `frame`. It has at least one row, and every label is usable."""
    entities, entity_ids = pd.factorize(frame["entity_id"])
    folds = np.arange(len(frame)) * FOLDS // len(frame)  # few entities: consecutive rows share a fold
    if len(entity_ids) >= 10 * FOLDS:
        folds = np.random.default_rng(FOLD_SEED).integers(0, FOLDS, len(entity_ids))[entities]
    label, names = frame[spec.label.column], spec.label.classes
    numbers = pd.Index(names).get_indexer(pd.Index(label)) if names else label.rank(pct=True).to_numpy()
    return Target(names, folds, numbers)


def leak(values: pd.Series, codes: Ints, target: Target, *, label: pd.Series) -> str | None:
    """Describe how a feature reveals the label. None where it does not.

    codes: the codes of `values`, −1 where a value is missing.
    """
    present = codes >= 0
    parts = [] if present.all() else [(" by being missing or not", present.astype(np.int64), target)]
    parts.append(("", codes[present], target.part(present)))
    if not present.all():
        parts.append(("", codes + 1, target))
    for suffix, part_codes, part_target in parts:
        share, evidence = _strength(part_codes, part_target)
        if share < LEAK:
            continue
        if not suffix and present.any() and bool((values[present] == label[present]).all()):
            return "is the label itself, in every row that has it"
        return f"alone tells {evidence}{suffix}: it may have been written after the label"
    return None


def codes_of(values: pd.Series, *, numeric: bool) -> tuple[Ints, int]:
    """The code of each value, −1 where a value is missing, and the number of distinct values."""
    if not numeric:
        codes, categories = pd.factorize(values)
        return _merge_rare_codes(codes.astype(np.int64)), len(categories)
    numbers = values.to_numpy(dtype=np.float64)
    missing = np.isnan(numbers)
    ordered = np.sort(numbers[~missing])
    distinct = int((np.diff(ordered) > 0).sum()) + bool(len(ordered))
    bins = min(BINS, len(ordered) // IN_A_BIN)
    positions = np.linspace(0, len(ordered), bins, endpoint=False).astype(np.int64)[1:]
    edges = np.unique(ordered[positions])
    return np.where(missing, -1, np.searchsorted(edges, numbers, side="right")), distinct


def _merge_rare_codes(codes: Ints) -> Ints:
    """Renumber `codes`. All codes that occur once share a code, because they predict nothing about any other row."""
    repeated = np.bincount(codes[codes >= 0]) > 1
    new_codes = np.where(repeated, np.cumsum(repeated), 0)
    return np.where(codes >= 0, new_codes[codes] if len(new_codes) else 0, -1)


def _strength(codes: Ints, target: Target) -> tuple[float, str]:
    """The share that `codes` alone predict, and a text that names the measure. 0 where there are too few rows."""
    if len(codes) < FEWEST_ROWS:
        return 0.0, ""
    if not target.names:
        share = explained(codes, target.values, target.folds)
        return share, f"{share:.1%} of the label's order (R² of its ranks)"
    best = max(separations(codes, target.values, target.folds, class_count=len(target.names)), default=(0.0, 0))
    return best[0], f"{target.names[best[1]]!r} from the rest in {best[0]:.1%} of all pairs (AUC)"


def separations(codes: Ints, classes: Ints, folds: Ints, *, class_count: int) -> Iterator[tuple[float, int]]:
    """The out-of-fold AUC of the codes and the class's number, for each class with enough rows on both sides.

    class_count: the number of classes.
    """
    size = int(codes.max()) + 1
    cells = (folds * size + codes) * class_count + classes
    counts = np.bincount(cells, minlength=FOLDS * size * class_count).reshape(FOLDS, size, class_count)
    other_folds = counts.sum(axis=0) - counts
    other_rows = other_folds.sum(axis=2)
    prior = counts.sum(axis=(0, 1)) / len(codes)
    occupied = counts.sum(axis=2) > 0
    for number in range(class_count):
        positive = counts[:, :, number]
        negative = counts.sum(axis=2) - positive
        if min(positive.sum(), negative.sum()) < FEWEST_ROWS:
            continue
        scores = np.where(other_rows > 0, other_folds[:, :, number] / np.maximum(other_rows, 1), prior[number])
        yield auc(scores[occupied], positive[occupied], negative[occupied]), number


def auc(scores: Floats, positive: Ints, negative: Ints) -> float:
    """The share of pairs of a positive and a negative row that `scores` puts in order. Ties count half.

    positive, negative: the numbers of rows of each kind that have the score at the same position.
    """
    order = np.argsort(scores)
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    positives = np.add.reduceat(positive[order], starts).astype(np.float64)
    negatives = np.add.reduceat(negative[order], starts).astype(np.float64)
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))


def explained(codes: Ints, ranks: Floats, folds: Ints) -> float:
    """R² of the prediction of a row's rank by the mean rank of its code in the other folds. May be negative."""
    spread = float(((ranks - ranks.mean()) ** 2).sum())
    if not spread:
        return 0.0
    size = int(codes.max()) + 1
    cells = folds * size + codes
    rows = np.bincount(cells, minlength=FOLDS * size).reshape(FOLDS, size)
    sums = np.bincount(cells, weights=ranks, minlength=FOLDS * size).reshape(FOLDS, size)
    other_rows, other_sums = rows.sum(axis=0) - rows, sums.sum(axis=0) - sums
    predicted = np.where(other_rows > 0, other_sums / np.maximum(other_rows, 1), ranks.mean())
    return 1 - float(((ranks - predicted.ravel()[cells]) ** 2).sum()) / spread
