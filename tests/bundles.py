"""Small real bundles for tests and benchmarks: a CatBoost model, trained in a second on rows generated from a spec."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostRegressor

from pipelines.artifact.bundle import write_companions
from pipelines.artifact.bundle_files import bundle_hash
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.artifact.profile import build_profile
from pipelines.spec import Categorical, Feature, ModelSpec, Numeric

TEXTS = ["Auto Loan", "Home Equity Loan, Auto Loan", "Student Loan", "Payday Loan, Student Loan"]
CATEGORIES = ("Engineer", "Teacher", "Doctor")


def rows_for(spec: ModelSpec, *, rows: int, seed: int) -> pd.DataFrame:
    """Random rows within the limits of `spec`. 5% of the values are missing. The label follows the numeric columns."""
    random = np.random.default_rng(seed)
    columns = {name: _values(feature, rows, random) for name, feature in spec.features.columns.items()}
    frame = pd.DataFrame(columns).mask(random.random((rows, len(columns))) < 0.05)
    numbers = frame[spec.columns_of("numeric")].astype(float)
    signal = ((numbers - numbers.mean()) / numbers.std()).fillna(0).iloc[:, :3].sum(axis=1)
    if spec.task == "regression":
        frame[spec.label.column] = signal
    else:
        frame[spec.label.column] = pd.qcut(signal, len(spec.label.classes), labels=list(spec.label.classes)).astype(str)
    frame["entity_id"] = [f"customer-{i}" for i in range(rows)]
    frame["event_time"] = pd.Timestamp("2026-01-01")
    return frame


def _values(feature: Feature, rows: int, random: np.random.Generator) -> Any:
    if isinstance(feature, Numeric):
        low = feature.min if feature.min is not None else 0.0
        return random.uniform(low, feature.max if feature.max is not None else low + 1000.0, rows)
    choices = (feature.values or CATEGORIES) if isinstance(feature, Categorical) else TEXTS
    return random.choice(np.array(choices, dtype=object), rows)


def write_bundle(spec: ModelSpec, folder: Path, *, seed: int = 1, rows: int = 2_000, trees: int = 50) -> str:
    """Train a model on `rows_for(spec)`, write its bundle into `folder` and return the bundle's SHA-256."""
    frame = rows_for(spec, rows=rows, seed=seed)
    kind = CatBoostRegressor if spec.task == "regression" else CatBoostClassifier
    model = kind(iterations=trees, depth=4, random_seed=seed, verbose=False, allow_writing_files=False)
    model.fit(pool_from_frame(frame, spec=spec, label=True))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_model(str(folder / "model.cb"))
    predicted = score(model, pool_from_frame(frame, spec=spec, label=False), spec=spec).predictions
    profile = build_profile(frame, predicted, spec=spec)
    write_companions(folder, model=model, spec=spec, profile=profile, fitted=frame)
    return bundle_hash(folder)
