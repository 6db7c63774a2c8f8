"""Find leaks: features that alone predict the label nearly perfectly, often because they were written after it. Pure.

Each value of a feature gets a code: its category, or the number of its bin. The code of a row predicts the row's label
from the labels of other entities with the same code. So a code that only one entity has predicts nothing. This measure
works for numbers, categories and missing values, and for relations of any shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.measures.defects import FEWEST_ROWS
from pipelines.spec import ModelSpec

# A feature above this limit is a leak. For classes, the limit applies to the AUC of the feature alone. For numbers, it
# applies to the share of the variance of the label's ranks that the feature alone explains (R²). Copied, scaled,
# rounded or coded labels are above the limit. The strongest features of the shipped models and of the examples' real
# data reach an AUC of 0.87 and an R² of 0.63. The temperature of an hour ago explains 0.985 of the variance.
LEAK = 0.99
FOLDS = 5
FOLD_SEED = 7  # fixed, so that the same rows always give the same findings
BINS = 256
LEAST_ROWS_PER_BIN = 5  # so that each row has other rows in its bin

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """The labels and folds of n rows. All rows of an entity are in one fold, unless there are few entities.

    classes: the names of the classes. Empty for a regression.
    folds: (n,) numbers of folds.
    values: (n,) positions in `classes`, or ranks in [0, 1] for a regression.
    """

    classes: tuple[str, ...]
    folds: Ints
    values: NDArray[Any]

    def select(self, mask: NDArray[np.bool_]) -> "Target":
        return Target(self.classes, self.folds[mask], self.values[mask])


def build_target(frame: pd.DataFrame, *, spec: ModelSpec) -> Target:
    """Build the target of `frame`, which has at least one row. Every label is usable."""
    entities, entity_ids = pd.factorize(frame["entity_id"])
    folds = np.arange(len(frame)) * FOLDS // len(frame)  # with few entities, consecutive rows share a fold
    if len(entity_ids) >= 10 * FOLDS:
        folds = np.random.default_rng(FOLD_SEED).integers(0, FOLDS, len(entity_ids))[entities]
    label, classes = frame[spec.label.column], spec.label.classes
    values = pd.Index(classes).get_indexer(pd.Index(label)) if classes else label.rank(pct=True).to_numpy()
    return Target(classes, folds, values)


def describe_leak(values: pd.Series, codes: Ints, target: Target, *, label: pd.Series) -> str | None:
    """Describe how a feature reveals the label. Return None if the feature is no leak.

    values: the feature's values.
    codes: the codes of `values`, −1 where a value is missing.
    target, label: the target and the labels of the same rows.
    """
    is_present = codes >= 0
    parts = [] if is_present.all() else [(" by being missing or not", is_present.astype(np.int64), target)]
    parts.append(("", codes[is_present], target.select(is_present)))
    if not is_present.all():
        parts.append(("", codes + 1, target))
    for suffix, part_codes, part_target in parts:
        strength, evidence = _measure_strength(part_codes, part_target)
        if strength < LEAK:
            continue
        if not suffix and is_present.any() and bool((values[is_present] == label[is_present]).all()):
            return "is the label itself, in every row that has it"
        return f"alone tells {evidence}{suffix}: it may have been written after the label"
    return None


def encode(values: pd.Series, *, numeric: bool) -> tuple[Ints, int]:
    """Return the code of each value, −1 where a value is missing, and the number of distinct values."""
    if not numeric:
        codes, categories = pd.factorize(values)
        return _merge_rare_codes(codes.astype(np.int64)), len(categories)
    numbers = values.to_numpy(dtype=np.float64)
    is_missing = np.isnan(numbers)
    sorted_numbers = np.sort(numbers[~is_missing])
    distinct = int((np.diff(sorted_numbers) > 0).sum()) + bool(len(sorted_numbers))
    bins = min(BINS, len(sorted_numbers) // LEAST_ROWS_PER_BIN)
    positions = np.linspace(0, len(sorted_numbers), bins, endpoint=False).astype(np.int64)[1:]
    edges = np.unique(sorted_numbers[positions])
    return np.where(is_missing, -1, np.searchsorted(edges, numbers, side="right")), distinct


def _merge_rare_codes(codes: Ints) -> Ints:
    """Renumber `codes`. Codes of a single row get the same new code, because they predict nothing for other rows."""
    is_repeated = np.bincount(codes[codes >= 0]) > 1
    new_codes = np.where(is_repeated, np.cumsum(is_repeated), 0)
    return np.where(codes >= 0, new_codes[codes] if len(new_codes) else 0, -1)


def _measure_strength(codes: Ints, target: Target) -> tuple[float, str]:
    """Return the AUC or the R² of `codes` alone, and a text that names the measure. 0 if there are too few rows."""
    if len(codes) < FEWEST_ROWS:
        return 0.0, ""
    if not target.classes:
        share = explained_variance(codes, target.values, target.folds)
        return share, f"{share:.1%} of the label's order (R² of its ranks)"
    aucs = class_aucs(codes, target.values, target.folds, class_count=len(target.classes))
    best_auc, best_class = max(aucs, default=(0.0, 0))
    return best_auc, f"{target.classes[best_class]!r} from the rest in {best_auc:.1%} of all pairs (AUC)"


def class_aucs(codes: Ints, classes: Ints, folds: Ints, *, class_count: int) -> Iterator[tuple[float, int]]:
    """Yield the out-of-fold AUC of each class against the other classes, and the number of the class.

    Classes with too few rows, or with too few rows of other classes, are left out.

    codes, classes, folds: (n,) integers.
    class_count: the number of classes.
    """
    code_count = int(codes.max()) + 1
    cells = (folds * code_count + codes) * class_count + classes
    counts = np.bincount(cells, minlength=FOLDS * code_count * class_count).reshape(FOLDS, code_count, class_count)
    other_folds = counts.sum(axis=0) - counts
    other_rows = other_folds.sum(axis=2)
    class_shares = counts.sum(axis=(0, 1)) / len(codes)
    has_rows = counts.sum(axis=2) > 0
    for number in range(class_count):
        positive = counts[:, :, number]
        negative = counts.sum(axis=2) - positive
        if min(positive.sum(), negative.sum()) < FEWEST_ROWS:
            continue
        scores = np.where(other_rows > 0, other_folds[:, :, number] / np.maximum(other_rows, 1), class_shares[number])
        yield auc(scores[has_rows], positive[has_rows], negative[has_rows]), number


def auc(scores: Floats, positive: Ints, negative: Ints) -> float:
    """The share of pairs of a positive and a negative row in which the positive row scores higher. Ties count half.

    scores: (m,) scores.
    positive, negative: (m,) numbers of positive and negative rows with each score.
    """
    order = np.argsort(scores)
    sorted_scores = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], sorted_scores[1:] != sorted_scores[:-1])))
    positives = np.add.reduceat(positive[order], starts).astype(np.float64)
    negatives = np.add.reduceat(negative[order], starts).astype(np.float64)
    negatives_below = np.cumsum(negatives) - negatives
    return float((positives * (negatives_below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))


def explained_variance(codes: Ints, ranks: Floats, folds: Ints) -> float:
    """The R² of a prediction of each row's rank. It may be negative.

    The prediction is the mean rank of the rows with the same code in the other folds.
    """
    total_variation = float(((ranks - ranks.mean()) ** 2).sum())
    if not total_variation:
        return 0.0
    code_count = int(codes.max()) + 1
    cells = folds * code_count + codes
    rows = np.bincount(cells, minlength=FOLDS * code_count).reshape(FOLDS, code_count)
    sums = np.bincount(cells, weights=ranks, minlength=FOLDS * code_count).reshape(FOLDS, code_count)
    other_rows, other_sums = rows.sum(axis=0) - rows, sums.sum(axis=0) - sums
    predicted = np.where(other_rows > 0, other_sums / np.maximum(other_rows, 1), ranks.mean())
    return 1 - float(((ranks - predicted.ravel()[cells]) ** 2).sum()) / total_variation
