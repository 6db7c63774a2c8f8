"""Reasons: the features that moved a prediction most, by the SHAP values of the version that made it.

CatBoost computes them exactly, text features included; they add up to the score (Lundberg et al. 2018, "Consistent
Individualized Feature Attribution for Tree Ensembles"). One row takes some ten milliseconds, a hundred times what its
prediction takes, so this is done only where it is asked for, and away from the batches.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from api.requests.row_type import Row
from api.scoring.predict import Version
from pipelines.artifact.features import pool_from_rows

TOP = 5  # reasons of one prediction

Answers = list[dict[str, Any]]


def with_reasons(version: Version, rows: Sequence[Row], answers: Answers) -> Answers:
    """`answers`, which `version` gave to `rows`, each with the reasons that weigh most, the heaviest first.

    A contribution is in the score's unit: log-odds of the predicted class, or the label's own unit for regression.
    """
    values = [list(row.values())[1:] for row in rows]
    found = contributions(version, values, [answer["prediction"] for answer in answers])
    names = list(version.bundle.spec.features.columns)
    return [
        {**answer, "reasons": _reasons(names, mine, weights)}
        for answer, mine, weights in zip(answers, values, found, strict=True)
    ]


def contributions(version: Version, rows: Sequence[Sequence[Any]], predicted: Sequence[str | float]) -> np.ndarray:
    """How much each feature moved the score of what was `predicted` for each row: rows × features.

    `rows` have one value a feature in the model file's order. What a feature moved is counted from the average.
    """
    model, spec = version.bundle.model, version.bundle.spec
    pool = pool_from_rows(rows, spec=spec, threads=1)
    shap = np.asarray(model.get_feature_importance(pool, type="ShapValues", thread_count=1))[..., :-1]
    if spec.task == "regression":
        return shap
    known = list(model.classes_)
    place = [known.index(name) for name in predicted]
    if spec.task == "multiclass":
        return np.asarray(shap[np.arange(len(rows)), place])
    return np.asarray(shap * np.where(np.array(place) == 1, 1.0, -1.0)[:, None])  # of two classes it scores the second


def _reasons(names: Sequence[str], values: Sequence[Any], weights: np.ndarray) -> list[dict[str, Any]]:
    heaviest = np.argsort(-np.abs(weights), kind="stable")[:TOP]
    return [
        {"feature": names[i], "value": values[i], "contribution": float(weights[i])} for i in heaviest if weights[i]
    ]
