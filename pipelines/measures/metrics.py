"""Metrics of predictions, each computed for many sets of row weights at the same time.

With all weights one, the result is the metric. With weights from bootstrap resamples, the results are the metric's
bootstrap distribution. So one definition of a metric gives both its value and its interval.
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
FEWEST_UNITS = 10  # units to resample; from fewer, an interval means nothing
_CELLS_PER_BLOCK = 4_000_000  # weights in a block, 32 MB


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """n predictions and their true labels. A class is its position in the order of the spec.

    truth: (n,) true labels, positions of classes or numbers.
    predicted: (n,) predictions, positions of classes or numbers.
    probabilities: (n, classes). None for a regression.
    classes: the number of classes. 0 for a regression.
    """

    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None
    classes: int


def judge(truth: np.ndarray, scores: Scores, *, spec: ModelSpec) -> JudgedRows:
    """Join the scores of n rows with their true labels.

    truth: (n,) class names or numbers, in the order of `scores`.
    """
    if spec.task == "regression":
        return JudgedRows(truth.astype(float), np.asarray(scores.predictions, float), None, 0)
    positions = {name: position for position, name in enumerate(spec.label.classes)}
    return JudgedRows(
        np.array([positions[name] for name in truth]),
        np.array([positions[str(name)] for name in scores.predictions]),
        scores.probabilities,
        len(positions),
    )


def metric_value(metric: str, judged_rows: JudgedRows) -> float:
    """Compute `metric` over all rows, each counted once. NaN if the metric is undefined, for example without rows."""
    return float(weighted_metric(metric, judged_rows, np.ones((1, len(judged_rows.truth))))[0])


def weighted_metric(metric: str, judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    """Compute `metric` once for each row of `weights`.

    weights: (resamples, n) weights of the rows. The result is an array (resamples,).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return _METRICS[metric](judged_rows, weights)


def resampling_units(entities: np.ndarray, event_times: np.ndarray) -> np.ndarray:
    """Return the resampling unit of each of n rows, (n,). All rows of a unit are drawn together.

    The unit is the row's entity. With fewer than ten entities, for example in one long series, the unit is the day of
    the event time. With fewer than ten days too, each row is a unit.
    """
    days = event_times.astype("datetime64[D]")
    for units in (entities, days):
        if len(np.unique(units)) >= FEWEST_UNITS:
            return units
    return np.arange(len(entities))


def entity_weights(units: np.ndarray, *, seed: int = RESAMPLE_SEED, resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Draw bootstrap weights for n rows. Return them in blocks of at most `resamples` rows and n columns.

    Whole units are drawn with replacement (the cluster bootstrap of Field and Welsh 2007). The rows of one entity are
    similar, so drawing single rows would give too narrow intervals.

    units: (n,) the resampling unit of each row, which is usually its entity (`resampling_units`).
    """
    _, unit_positions = np.unique(units, return_inverse=True)
    unit_count = int(unit_positions.max()) + 1
    block_size = max(1, min(resamples, _CELLS_PER_BLOCK // len(units)))
    generator = np.random.default_rng(seed)
    sizes = [min(block_size, resamples - start) for start in range(0, resamples, block_size)]
    return [
        generator.multinomial(unit_count, np.full(unit_count, 1 / unit_count), size=size)[:, unit_positions].astype(
            float
        )
        for size in sizes
    ]


def _f1s(judged_rows: JudgedRows, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the F1 of each class, 2·TP / (2·TP + FP + FN), and the total weight of the rows with that true class.

    Both arrays are (resamples, classes). F1 is NaN for a class that is neither true nor predicted in any row.
    """
    k = judged_rows.classes
    cells = np.zeros((len(judged_rows.truth), k * k))
    cells[np.arange(len(judged_rows.truth)), judged_rows.truth * k + judged_rows.predicted] = 1
    matrix = (weights @ cells).reshape(-1, k, k)
    true_positives = np.diagonal(matrix, axis1=1, axis2=2)
    support = matrix.sum(axis=2)
    return 2 * true_positives / (matrix.sum(axis=1) + support), support


def _macro_f1(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    """The mean F1 over the classes that are the true class of a row.

    A class that is only predicted is left out, because its F1 is always 0. If two classes occur in a small slice, one
    row predicted as a third class would lower the mean by a third. The row already lowers the F1 of its true class.
    """
    scores, support = _f1s(judged_rows, weights)
    mean: np.ndarray = np.nanmean(np.where(support > 0, scores, np.nan), axis=1)
    return mean


def _f1(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return _f1s(judged_rows, weights)[0][:, -1]  # the positive class is the last one


def _accuracy(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return _mean(judged_rows.truth == judged_rows.predicted, weights)


def _log_loss(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    assert judged_rows.probabilities is not None  # noqa: S101  (the spec allows this metric only for classes)
    true_class_probability = judged_rows.probabilities[np.arange(len(judged_rows.truth)), judged_rows.truth]
    return _mean(-np.log(np.clip(true_class_probability, 1e-15, 1)), weights)


def _roc_auc(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    """The probability that a positive row has a higher score than a negative row. Ties count half (Mann–Whitney)."""
    assert judged_rows.probabilities is not None  # noqa: S101
    probability = judged_rows.probabilities[:, -1]
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(probability[order]) > 0])
    sorted_weights, positive = weights[:, order], (judged_rows.truth[order] == 1)
    positives = np.add.reduceat(sorted_weights * positive, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    area: np.ndarray = (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))
    return area


def _rmse(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean((judged_rows.truth - judged_rows.predicted) ** 2, weights))


def _mae(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    return _mean(np.abs(judged_rows.truth - judged_rows.predicted), weights)


def _r2(judged_rows: JudgedRows, weights: np.ndarray) -> np.ndarray:
    spread = _mean(judged_rows.truth**2, weights) - _mean(judged_rows.truth, weights) ** 2
    explained: np.ndarray = 1 - _mean((judged_rows.truth - judged_rows.predicted) ** 2, weights) / spread
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
