"""A baseline: MLflow's own scoring server, `mlflow models serve`, used as its documentation shows."""

from pathlib import Path

import mlflow.catboost
import pandas as pd
from catboost import CatBoostClassifier
from mlflow.models import infer_signature


def save(model: CatBoostClassifier, rows: pd.DataFrame, folder: Path) -> None:
    """Write the model to `folder` in MLflow's format.

    rows: features for the signature, without missing values in categories and text.
    """
    signature = infer_signature(rows, model.predict(rows))
    mlflow.catboost.save_model(model, str(folder), signature=signature, pip_requirements=["catboost"])
