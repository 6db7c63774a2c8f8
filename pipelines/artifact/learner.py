"""The learner: all that knows CatBoost, from rows to a fitted model and from its scores to predictions.

The same code trains, evaluates and serves. The ranges that a search draws its parameters from are in the model file
(`spec.sections.Space`); nothing else knows one learner from another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from catboost import CatBoost, CatBoostClassifier, CatBoostRegressor, Pool

from pipelines.spec import ModelSpec
from utils.errors import DataRefused

# CatBoost takes no null in a categorical or text column; the loader stores blanks as null, so nothing else is "".
MISSING_TEXT = ""
FIT_SEED = 7  # the same rows and parameters then give the same predictions
EARLY_STOPPING_TREES = 30  # trees without a better validation score before a fit stops
LOSS = {"multiclass": "MultiClass", "binary": "Logloss", "regression": "RMSE"}
LIBRARY = "catboost"  # and the name of its flavour in MLflow

type Model = CatBoost


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
    texts[texts == np.array(None)] = MISSING_TEXT
    values[:, textual] = texts
    return Pool(values, thread_count=threads, **_roles(spec))


def pool_from_frame(frame: pd.DataFrame, *, spec: ModelSpec, label: bool) -> Pool:
    """A pool of the feature columns of `frame`, with the label column where `label` is true."""
    columns = {
        name: frame[name].astype("float64")
        if feature.type == "numeric"
        else frame[name].astype(object).where(frame[name].notna(), MISSING_TEXT)
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


def score(model: Model, pool: Pool, *, spec: ModelSpec, threads: int = -1) -> Scores:
    """Predictions for the rows of `pool`. A class wins by the highest probability, the first one on a tie."""
    if spec.task == "regression":
        return Scores(model.predict(pool, thread_count=threads).tolist(), None)
    raw = model.predict(pool, prediction_type="Probability", thread_count=threads)
    # CatBoost orders classes by its own rule, not by the model file.
    known = list(model.classes_)  # once: each look takes as long as the trees of a row
    order = [known.index(name) for name in spec.label.classes]
    probabilities = np.asarray(raw)[:, order]
    return Scores([spec.label.classes[i] for i in probabilities.argmax(axis=1)], probabilities)


def fit(
    train: pd.DataFrame,
    *,
    spec: ModelSpec,
    params: Mapping[str, Any],
    trees: int,
    validation: pd.DataFrame | None = None,
) -> Model:
    """A CatBoost model of `train`. With `validation` it stops early and keeps its best trees; without, all `trees`."""
    kind = CatBoostRegressor if spec.task == "regression" else CatBoostClassifier
    fixed = {"loss_function": LOSS[spec.task], "random_seed": FIT_SEED, "allow_writing_files": False, "verbose": False}
    model = kind(iterations=trees, **fixed, **_text_processing(train, spec=spec), **params)
    stopping: dict[str, Any] = {}
    if validation is not None:
        stopping = {
            "eval_set": pool_from_frame(validation, spec=spec, label=True),
            "early_stopping_rounds": EARLY_STOPPING_TREES,
        }
    model.fit(pool_from_frame(train, spec=spec, label=True), **stopping)
    return model


def _text_processing(train: pd.DataFrame, *, spec: ModelSpec) -> dict[str, Any]:
    """Words and nothing else: CatBoost's own setting refuses a column without pairs of words that occur often.

    Raises: DataRefused where a text feature has no words to learn from.
    """
    if empty := [name for name in spec.columns_of("text") if not train[name].fillna("").str.strip().any()]:
        raise DataRefused(
            f"{spec.name}: no training row has words in the text feature {', '.join(empty)}: load rows "
            "that have, or take it out of features.columns"
        )
    if not spec.columns_of("text"):
        return {}
    calcers = ["BoW"] if spec.task == "regression" else ["BoW", "NaiveBayes"]
    return {
        "text_processing": {
            "tokenizers": [{"tokenizer_id": "Words", "separator_type": "ByDelimiter", "delimiter": " "}],
            "dictionaries": [{"dictionary_id": "Word", "occurrence_lower_bound": "1", "max_dictionary_size": "10000"}],
            "feature_processing": {
                "default": [{"tokenizers_names": ["Words"], "dictionaries_names": ["Word"], "feature_calcers": calcers}]
            },
        }
    }


def load(file: Path, *, spec: ModelSpec) -> Model:
    """The model in CatBoost's own format in `file`."""
    model = CatBoostRegressor() if spec.task == "regression" else CatBoostClassifier()
    model.load_model(str(file))
    return model


def trees(model: Model) -> int:
    """How many trees it kept."""
    return int(model.tree_count_)


def curves(model: Model) -> dict[str, list[float]]:
    """The loss by tree on what it was fitted on and on the rows it stopped by, by CatBoost's names for both."""
    return {name: next(iter(losses.values())) for name, losses in model.get_evals_result().items()}


def importance(model: Model) -> dict[str, float]:
    """By feature, its share of the prediction's changes (CatBoost's PredictionValuesChange), in percent."""
    return dict(zip(model.feature_names_, model.get_feature_importance(), strict=True))


def contributions(
    model: Model, rows: Sequence[Sequence[Any]], predicted: Sequence[str | float], *, spec: ModelSpec
) -> np.ndarray:
    """How much each feature moved the score of what was `predicted` for each row: rows × features.

    `rows` have one value a feature in the model file's order. What a feature moved is counted from the average; they
    are SHAP values, which CatBoost computes exactly (Lundberg et al. 2018, "Consistent Individualized Feature
    Attribution for Tree Ensembles").
    """
    pool = pool_from_rows(rows, spec=spec, threads=1)
    shap = np.asarray(model.get_feature_importance(pool, type="ShapValues", thread_count=1))[..., :-1]
    if spec.task == "regression":
        return shap
    known = list(model.classes_)
    place = [known.index(name) for name in predicted]
    if spec.task == "multiclass":
        return np.asarray(shap[np.arange(len(rows)), place])
    return np.asarray(shap * np.where(np.array(place) == 1, 1.0, -1.0)[:, None])  # of two classes it scores the second
