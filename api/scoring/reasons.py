"""Reasons: the features that moved a prediction most, by the SHAP values of the version that made it.

They add up to the score (`learner.contributions`). One row takes some ten milliseconds, a hundred times what its
prediction takes, so this is done only where it is asked for, and away from the batches.
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
    """`answers`, which `version` gave to `rows`, each with the reasons that weigh most, the heaviest first.

    A contribution is in the score's unit: log-odds of the predicted class, or the label's own unit for regression.
    """
    bundle, values = version.bundle, [list(row.values())[1:] for row in rows]
    found = contributions(bundle.model, values, [answer["prediction"] for answer in answers], spec=bundle.spec)
    names = list(bundle.spec.features.columns)
    return [
        {**answer, "reasons": _reasons(names, mine, weights)}
        for answer, mine, weights in zip(answers, values, found, strict=True)
    ]


def _reasons(names: Sequence[str], values: Sequence[Any], weights: np.ndarray) -> list[dict[str, Any]]:
    heaviest = np.argsort(-np.abs(weights), kind="stable")[:TOP]
    return [
        {"feature": names[i], "value": values[i], "contribution": float(weights[i])} for i in heaviest if weights[i]
    ]
