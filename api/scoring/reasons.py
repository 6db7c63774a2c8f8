"""Reasons: the features that moved a prediction most, by the SHAP values of the version that made it.

The SHAP values add up to the score (`learner.contributions`). One row takes some ten milliseconds, a hundred times as
long as its prediction. So reasons are made only on request, and outside the batches.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from api.requests.row_type import Row
from api.scoring.predict import LoadedVersion
from pipelines.artifact.learner import contributions

TOP = 5  # reasons of one prediction

Answers = list[dict[str, Any]]


def with_reasons(version: LoadedVersion, rows: Sequence[Row], answers: Answers) -> Answers:
    """The `answers` of `version` to `rows`, each with its strongest reasons, the strongest first.

    A contribution is in the score's unit: log-odds of the predicted class, or the label's own unit for regression.
    """
    bundle, values = version.bundle, [list(row.values())[1:] for row in rows]
    weights = contributions(bundle.model, values, [answer["prediction"] for answer in answers], spec=bundle.spec)
    names = list(bundle.spec.features.columns)
    return [
        {**answer, "reasons": _reasons(names, row_values, row_weights)}
        for answer, row_values, row_weights in zip(answers, values, weights, strict=True)
    ]


def _reasons(names: Sequence[str], values: Sequence[Any], weights: np.ndarray) -> list[dict[str, Any]]:
    heaviest = np.argsort(-np.abs(weights), kind="stable")[:TOP]
    return [
        {"feature": names[i], "value": values[i], "contribution": float(weights[i])} for i in heaviest if weights[i]
    ]
