"""The learner: all code that uses CatBoost to fit, load and explain a model, and to score rows.

Training, evaluation and serving use the same code. Outside this module, only the search space in the model file depends
on the learner (`spec.sections.Space`).
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

# CatBoost rejects null in categorical and text columns. No stored value is "", because the loader stores it as null.
MISSING_TEXT = ""
FIT_SEED = 7  # fixed, so that a second fit gives the same model
EARLY_STOPPING_TREES = 30  # trees without a better validation loss, after which a fit stops
LOSS = {"multiclass": "MultiClass", "binary": "Logloss", "regression": "RMSE"}
LIBRARY = "catboost"  # the name of the package and of the flavor in MLflow

type Model = CatBoost


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of n rows.

    predictions: n class names, or n numbers for a regression.
    probabilities: (n, classes), in the order of the spec. None for a regression.
    """

    predictions: list[str] | list[float]
    probabilities: np.ndarray | None


def pool_from_rows(rows: Sequence[Sequence[Any]], *, spec: ModelSpec, threads: int = -1) -> Pool:
    """Build a pool of `rows`. A row has one value per feature, in the order of the model file. None means missing.

    For one row, this takes a fifth of the time that `pool_from_frame` takes.

    threads: the number of threads, or −1 for all cores. For one row, use 1: idle threads spin for a while after each
        pool, which takes more CPU time than all other work.
    """
    values = np.array(rows, dtype=object)  # faster than lists, and CatBoost reads None as a missing number
    text_columns = [index for index, feature in enumerate(spec.features.columns.values()) if feature.type != "numeric"]
    texts = values[:, text_columns]
    texts[texts == np.array(None)] = MISSING_TEXT
    values[:, text_columns] = texts
    return Pool(values, thread_count=threads, **_column_roles(spec))


def pool_from_frame(frame: pd.DataFrame, *, spec: ModelSpec, label: bool) -> Pool:
    """Build a pool of the feature columns of `frame`, with the label column if `label` is true."""
    columns = {
        name: frame[name].astype("float64")
        if feature.type == "numeric"
        else frame[name].astype(object).where(frame[name].notna(), MISSING_TEXT)
        for name, feature in spec.features.columns.items()
    }
    return Pool(pd.DataFrame(columns), label=frame[spec.label.column] if label else None, **_column_roles(spec))


def _column_roles(spec: ModelSpec) -> dict[str, list[str]]:
    return {
        "feature_names": list(spec.features.columns),
        "cat_features": spec.columns_of("categorical"),
        "text_features": spec.columns_of("text"),
    }


def rows_of(frame: pd.DataFrame, *, spec: ModelSpec) -> list[list[Any]]:
    """The feature values of `frame` as rows of JSON values, in the order of the model file. Missing values are None."""
    features = frame[list(spec.features.columns)].astype(object)
    rows: list[list[Any]] = features.where(features.notna(), None).to_numpy().tolist()
    return rows


def score(model: Model, pool: Pool, *, spec: ModelSpec, threads: int = -1) -> Scores:
    """Score the rows of `pool`. The prediction is the class with the highest probability, on a tie the first class."""
    if spec.task == "regression":
        return Scores(model.predict(pool, thread_count=threads).tolist(), None)
    catboost_probabilities = model.predict(pool, prediction_type="Probability", thread_count=threads)
    # CatBoost has its own order of classes. Each access to `classes_` takes as long as scoring a row.
    catboost_classes = list(model.classes_)
    order = [catboost_classes.index(name) for name in spec.label.classes]
    probabilities = np.asarray(catboost_probabilities)[:, order]
    return Scores([spec.label.classes[position] for position in probabilities.argmax(axis=1)], probabilities)


def fit(
    train: pd.DataFrame,
    *,
    spec: ModelSpec,
    params: Mapping[str, Any],
    trees: int,
    validation: pd.DataFrame | None = None,
) -> Model:
    """Fit a model on the rows `train`.

    trees: the number of trees, or their maximum if `validation` is given.
    validation: rows for early stopping. The model keeps the number of trees that is best on these rows.
    """
    model_class = CatBoostRegressor if spec.task == "regression" else CatBoostClassifier
    fixed_params = {
        "loss_function": LOSS[spec.task],
        "random_seed": FIT_SEED,
        "allow_writing_files": False,
        "verbose": False,
    }
    model = model_class(iterations=trees, **fixed_params, **_text_settings(train, spec=spec), **params)
    early_stopping: dict[str, Any] = {}
    if validation is not None:
        early_stopping = {
            "eval_set": pool_from_frame(validation, spec=spec, label=True),
            "early_stopping_rounds": EARLY_STOPPING_TREES,
        }
    model.fit(pool_from_frame(train, spec=spec, label=True), **early_stopping)
    return model


def _text_settings(train: pd.DataFrame, *, spec: ModelSpec) -> dict[str, Any]:
    """CatBoost's settings for text features. Texts are processed as single words.

    CatBoost's default also uses pairs of words, and fails on a column without frequent pairs.

    Raises: DataRefused if a text feature has no words.
    """
    if empty_features := [name for name in spec.columns_of("text") if not train[name].fillna("").str.strip().any()]:
        raise DataRefused(
            f"{spec.name}: no training row has words in the text feature {', '.join(empty_features)}: load rows "
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
    """Load the model from `file`, in CatBoost's format."""
    model = CatBoostRegressor() if spec.task == "regression" else CatBoostClassifier()
    model.load_model(str(file))
    return model


def tree_count(model: Model) -> int:
    """The number of trees of `model`."""
    return int(model.tree_count_)


def loss_curves(model: Model) -> dict[str, list[float]]:
    """The loss after each tree, on the training rows and on the validation rows.

    The keys are CatBoost's names of these rows: `learn` and `validation`.
    """
    return {name: next(iter(losses.values())) for name, losses in model.get_evals_result().items()}


def feature_importance(model: Model) -> dict[str, float]:
    """The importance of each feature, in percent of the sum over all features (CatBoost's PredictionValuesChange)."""
    return dict(zip(model.feature_names_, model.get_feature_importance(), strict=True))


def contributions(
    model: Model, rows: Sequence[Sequence[Any]], predicted: Sequence[str | float], *, spec: ModelSpec
) -> np.ndarray:
    """Compute the contribution of each feature to the score of each row's prediction, as an array (rows, features).

    The contributions are SHAP values, relative to the average score. CatBoost computes them exactly (Lundberg et al.
    2018, "Consistent Individualized Feature Attribution for Tree Ensembles").

    rows: one value per feature, in the order of the model file.
    predicted: the prediction of each row, a class name or a number.
    """
    pool = pool_from_rows(rows, spec=spec, threads=1)
    shap_values = np.asarray(model.get_feature_importance(pool, type="ShapValues", thread_count=1))[..., :-1]
    if spec.task == "regression":
        return shap_values
    classes = list(model.classes_)
    class_index = [classes.index(name) for name in predicted]
    if spec.task == "multiclass":
        return np.asarray(shap_values[np.arange(len(rows)), class_index])
    # In a binary task, the score is that of the second class.
    return np.asarray(shap_values * np.where(np.array(class_index) == 1, 1.0, -1.0)[:, None])
