"""How rows become a CatBoost pool and scores become predictions: the same code trains, evaluates and serves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from catboost import CatBoost, Pool

from pipelines.spec import ModelSpec

# CatBoost takes no null in a categorical or text column; the loader stores blanks as null, so nothing else is "".
MISSING = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """`predictions`: n class names or floats. `probabilities`: n × classes in the spec's order, None for regression."""

    predictions: list[str] | list[float]
    probabilities: np.ndarray | None


def pool_from_rows(rows: Sequence[Sequence[Any]], *, spec: ModelSpec, threads: int = -1) -> Pool:
    """A pool of `rows`, each with one value a feature in the model file's order; None is missing.

    Takes a fifth of the time that a DataFrame takes for one row. More threads than one go on asking for work for a
    while after each pool, which for one row takes more of the processor than anything else.
    """
    values = np.array(rows, dtype=object)  # CatBoost takes it faster than lists, and None in it as a missing number
    textual = [place for place, feature in enumerate(spec.features.columns.values()) if feature.type != "numeric"]
    texts = values[:, textual]
    texts[texts == np.array(None)] = MISSING
    values[:, textual] = texts
    return Pool(values, thread_count=threads, **_roles(spec))


def pool_from_frame(frame: pd.DataFrame, *, spec: ModelSpec, label: bool) -> Pool:
    """A pool of the feature columns of `frame`, with the label column where `label` is true."""
    columns = {
        name: frame[name].astype("float64")
        if feature.type == "numeric"
        else frame[name].astype(object).where(frame[name].notna(), MISSING)
        for name, feature in spec.features.columns.items()
    }
    return Pool(pd.DataFrame(columns), label=frame[spec.label.column] if label else None, **_roles(spec))


def _roles(spec: ModelSpec) -> dict[str, list[str]]:
    return {
        "feature_names": list(spec.features.columns),
        "cat_features": spec.columns_of("categorical"),
        "text_features": spec.columns_of("text"),
    }


def rows_of(frame: pd.DataFrame, *, spec: ModelSpec) -> list[list[Any]]:
    """The feature values of `frame` as JSON-ready rows in the model file's order; missing is None."""
    features = frame[list(spec.features.columns)].astype(object)
    rows: list[list[Any]] = features.where(features.notna(), None).to_numpy().tolist()
    return rows


def score(model: CatBoost, pool: Pool, *, spec: ModelSpec, threads: int = -1) -> Scores:
    """Predictions for the rows of `pool`. A class wins by the highest probability, the first one on a tie."""
    if spec.task == "regression":
        return Scores(model.predict(pool, thread_count=threads).tolist(), None)
    raw = model.predict(pool, prediction_type="Probability", thread_count=threads)
    # CatBoost orders classes by its own rule, not by the model file.
    known = list(model.classes_)  # once: each look takes as long as the trees of a row
    order = [known.index(name) for name in spec.label.classes]
    probabilities = np.asarray(raw)[:, order]
    return Scores([spec.label.classes[i] for i in probabilities.argmax(axis=1)], probabilities)
