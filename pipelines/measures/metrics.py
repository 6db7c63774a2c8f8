"""Metrics of predictions, each computed for many weightings of the rows at once.

Weights of one give the metric. Resampled weights give its bootstrap distribution. So a value and its interval always
come from the same definition.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.artifact.learner import Scores
from pipelines.spec import ModelSpec

HIGHER_IS_BETTER = {
    "macro_f1": True,
    "f1": True,
    "accuracy": True,
    "roc_auc": True,
    "r2": True,
    "log_loss": False,
    "rmse": False,
    "mae": False,
}
RESAMPLES = 1000
RESAMPLE_SEED = 7  # fixed, so that the same rows give the same interval
FEWEST_UNITS = 10  # units to resample; an interval from fewer is meaningless
_CELLS_AT_ONCE = 4_000_000  # cells in a block of weights, 32 MB


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """n predictions and their true labels. Classes are codes in the spec's order; regression has values.

    truth: (n,).
    predicted: (n,).
    probabilities: (n, classes). None for regression.
    classes: the number of classes. 0 for regression.
    """

    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None
    classes: int


def judge(truth: np.ndarray, scores: Scores, *, spec: ModelSpec) -> JudgedRows:
    """Join `scores` with the true labels, an array of class names or numbers in the same row order."""
    if spec.task == "regression":
        return JudgedRows(truth.astype(float), np.asarray(scores.predictions, float), None, 0)
    code = {name: position for position, name in enumerate(spec.label.classes)}
    return JudgedRows(
        np.array([code[name] for name in truth]),
        np.array([code[str(name)] for name in scores.predictions]),
        scores.probabilities,
        len(code),
    )


def value(metric: str, judged: JudgedRows) -> float:
    """Return `metric` over all rows, each counted once. NaN where the metric is undefined (one class only, no rows)."""
    return float(weighted(metric, judged, np.ones((1, len(judged.truth))))[0])


def weighted(metric: str, judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    """Return `metric` for each row of `weights`, (resamples, n), as an array (resamples,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return _METRICS[metric](judged, weights)


def drawn_together(entities: np.ndarray, event_times: np.ndarray) -> np.ndarray:
    """The unit that each of n rows is resampled with, (n,).

    The unit is the row's entity. With fewer than ten entities, for example in one long series, it is the day of the
    event time. With fewer than ten days too, each row is a unit of its own.
    """
    days = event_times.astype("datetime64[D]")
    return next((unit for unit in (entities, days) if len(np.unique(unit)) >= FEWEST_UNITS), np.arange(len(entities)))


def entity_weights(entities: np.ndarray, *, seed: int = RESAMPLE_SEED, resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Blocks (≤ resamples, n) of bootstrap weights. Whole entities are drawn with replacement.

    The rows of one entity are alike, so drawing single rows would promise too much precision (the cluster bootstrap
    of Field and Welsh 2007).
    """
    _, position = np.unique(entities, return_inverse=True)
    count = int(position.max()) + 1
    block = max(1, min(resamples, _CELLS_AT_ONCE // len(entities)))
    generator = np.random.default_rng(seed)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return [
        generator.multinomial(count, np.full(count, 1 / count), size=size)[:, position].astype(float) for size in sizes
    ]


def _f1s(judged: JudgedRows, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of each class, 2·TP / (2·TP + FP + FN), and the weight of the rows whose true class it is.

    Both are (resamples, classes). F1 is NaN for a class that is neither true nor predicted in any row.
    """
    k = judged.classes
    cells = np.zeros((len(judged.truth), k * k))
    cells[np.arange(len(judged.truth)), judged.truth * k + judged.predicted] = 1
    matrix = (weights @ cells).reshape(-1, k, k)
    hits = np.diagonal(matrix, axis1=1, axis2=2)
    support = matrix.sum(axis=2)
    return 2 * hits / (matrix.sum(axis=1) + support), support


def _macro_f1(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    """The mean F1 over the classes that occur in the truth.

    A class that is only predicted is left out. Its F1 is always 0, so a single such row would cost a small slice a
    third of its value. The row's true class loses F1 by the wrong prediction anyway.
    """
    scores, support = _f1s(judged, weights)
    mean: np.ndarray = np.nanmean(np.where(support > 0, scores, np.nan), axis=1)
    return mean


def _f1(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return _f1s(judged, weights)[0][:, -1]  # the positive class is the last one


def _accuracy(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return _mean(judged.truth == judged.predicted, weights)


def _log_loss(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    assert judged.probabilities is not None  # noqa: S101  (the spec allows this metric for classes only)
    true_class_probability = judged.probabilities[np.arange(len(judged.truth)), judged.truth]
    return _mean(-np.log(np.clip(true_class_probability, 1e-15, 1)), weights)


def _roc_auc(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    """The chance that a positive row scores above a negative row. Ties count half (Mann–Whitney)."""
    assert judged.probabilities is not None  # noqa: S101
    probability = judged.probabilities[:, -1]
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(probability[order]) > 0])
    sorted_weights, positive = weights[:, order], (judged.truth[order] == 1)
    positives = np.add.reduceat(sorted_weights * positive, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    area: np.ndarray = (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))
    return area


def _rmse(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean((judged.truth - judged.predicted) ** 2, weights))


def _mae(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return _mean(np.abs(judged.truth - judged.predicted), weights)


def _r2(judged: JudgedRows, weights: np.ndarray) -> np.ndarray:
    spread = _mean(judged.truth**2, weights) - _mean(judged.truth, weights) ** 2
    explained: np.ndarray = 1 - _mean((judged.truth - judged.predicted) ** 2, weights) / spread
    return explained


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    mean: np.ndarray = (weights @ values.astype(float)) / weights.sum(axis=1)
    return mean


_METRICS: Mapping[str, Callable[[JudgedRows, np.ndarray], np.ndarray]] = {
    "macro_f1": _macro_f1,
    "f1": _f1,
    "accuracy": _accuracy,
    "log_loss": _log_loss,
    "roc_auc": _roc_auc,
    "rmse": _rmse,
    "mae": _mae,
    "r2": _r2,
}
