"""Leaks: features that alone tell the label nearly perfectly, as one does that was written after it. Pure.

A feature's values become codes (the categories, or up to 256 bins of a number), and each row is scored by what the rows
of *other* entities with its code have as label. So a code that only one entity has tells nothing about it, and numbers,
categories, gaps and orders that go up and down are all judged by one measure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.measures.defects import FEWEST_ROWS
from pipelines.spec import ModelSpec

# Of pairs of rows with different labels, the share that a feature alone puts in order (AUC); of the label's ranks, the
# share of variance that it alone explains (R²). Honest features stay below: the strongest of the shipped models and of
# the examples' real data reach an AUC of 0.87 and an R² of 0.63, and the temperature of an hour ago explains 0.985 of
# that of now. A label that was copied, scaled, rounded or coded is above.
LEAK = 0.99
FOLDS = 5
FOLD_SEED = 7  # of who is in which fold: the same rows are always judged alike
BINS = 256
IN_A_BIN = 5  # rows at least, so that a bin is known from other rows than the one that is scored

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """What a snapshot's rows have as label, and in which fold they are. An entity is in one, unless there are few.

    `values`: n numbers of the classes in `names`, or n ranks in [0, 1] where there are no classes.
    """

    names: tuple[str, ...]
    folds: Ints
    values: NDArray[Any]

    def part(self, rows: NDArray[np.bool_]) -> "Target":
        return Target(self.names, self.folds[rows], self.values[rows])


def target_of(frame: pd.DataFrame, *, spec: ModelSpec) -> Target:
    """The target of at least one row; their labels are known, and classes of the model file."""
    entities, known = pd.factorize(frame["entity_id"])
    folds = np.arange(len(frame)) * FOLDS // len(frame)  # few entities: stretches of rows
    if len(known) >= 10 * FOLDS:
        folds = np.random.default_rng(FOLD_SEED).integers(0, FOLDS, len(known))[entities]
    label, names = frame[spec.label.column], spec.label.classes
    numbers = pd.Index(names).get_indexer(pd.Index(label)) if names else label.rank(pct=True).to_numpy()
    return Target(names, folds, numbers)


def leak(values: pd.Series, codes: Ints, target: Target, *, label: pd.Series) -> str | None:
    """What gives a feature away, in words; None where it tells too little. `codes`: those of `values`, −1 missing."""
    known = codes >= 0
    parts = [] if known.all() else [(" by being missing or not", known.astype(np.int64), target)]
    parts.append(("", codes[known], target.part(known)))
    if not known.all():
        parts.append(("", codes + 1, target))
    for how, of, against in parts:
        share, told = _strength(of, against)
        if share < LEAK:
            continue
        if not how and known.any() and bool((values[known] == label[known]).all()):
            return "is the label itself, in every row that has it"
        return f"alone tells {told}{how}: it may have been written after the label"
    return None


def codes_of(values: pd.Series, *, numeric: bool) -> tuple[Ints, int]:
    """A code for each value, −1 where it is missing, and how many distinct values there are."""
    if not numeric:
        codes, found = pd.factorize(values)
        return _together(codes.astype(np.int64)), len(found)
    numbers = values.to_numpy(dtype=np.float64)
    missing = np.isnan(numbers)
    ordered = np.sort(numbers[~missing])
    distinct = int((np.diff(ordered) > 0).sum()) + bool(len(ordered))
    bins = min(BINS, len(ordered) // IN_A_BIN)
    at = np.linspace(0, len(ordered), bins, endpoint=False).astype(np.int64)[1:]
    edges = np.unique(ordered[at])
    return np.where(missing, -1, np.searchsorted(edges, numbers, side="right")), distinct


def _together(codes: Ints) -> Ints:
    """`codes` numbered anew, with one for all that occur once: they tell nothing about any other row."""
    often = np.bincount(codes[codes >= 0]) > 1
    numbers = np.where(often, np.cumsum(often), 0)
    return np.where(codes >= 0, numbers[codes] if len(numbers) else 0, -1)


def _strength(codes: Ints, target: Target) -> tuple[float, str]:
    """How much `codes` alone tell, and of what; 0 where too few rows can say it."""
    if len(codes) < FEWEST_ROWS:
        return 0.0, ""
    if not target.names:
        share = explained(codes, target.values, target.folds)
        return share, f"{share:.1%} of the label's order (R² of its ranks)"
    best = max(separations(codes, target.values, target.folds, of=len(target.names)), default=(0.0, 0))
    return best[0], f"{target.names[best[1]]!r} from the rest in {best[0]:.1%} of all pairs (AUC)"


def separations(codes: Ints, classes: Ints, folds: Ints, *, of: int) -> Iterator[tuple[float, int]]:
    """For each class with enough rows on both sides: the codes' AUC, out of fold, and the class's number."""
    size = int(codes.max()) + 1
    cells = (folds * size + codes) * of + classes
    counts = np.bincount(cells, minlength=FOLDS * size * of).reshape(FOLDS, size, of)
    others = counts.sum(axis=0) - counts
    rows = others.sum(axis=2)
    prior = counts.sum(axis=(0, 1)) / len(codes)
    seen = counts.sum(axis=2) > 0
    for number in range(of):
        positive = counts[:, :, number]
        negative = counts.sum(axis=2) - positive
        if min(positive.sum(), negative.sum()) < FEWEST_ROWS:
            continue
        scores = np.where(rows > 0, others[:, :, number] / np.maximum(rows, 1), prior[number])
        yield auc(scores[seen], positive[seen], negative[seen]), number


def auc(scores: Floats, positive: Ints, negative: Ints) -> float:
    """The share of pairs of a positive and a negative row that `scores` puts in order, ties counting half.

    `positive`, `negative`: how many rows of each kind have the score at the same place.
    """
    order = np.argsort(scores)
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    up = np.add.reduceat(positive[order], starts).astype(np.float64)
    down = np.add.reduceat(negative[order], starts).astype(np.float64)
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum() / (up.sum() * down.sum()))


def explained(codes: Ints, ranks: Floats, folds: Ints) -> float:
    """R² of the mean rank of a row's code in the other folds as its prediction; negative where it tells nothing."""
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
