"""A bundle: the folder that holds all that serving a version needs, checked against one SHA-256.

model.cb       CatBoost's own format; no pickle
spec.json      the model file as it was when the version was trained
profile.json   the reference profile that drift is measured against
golden.json    rows with the predictions that the trained model gave for them
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from catboost import CatBoost, CatBoostClassifier, CatBoostRegressor

from pipelines.features import Scores, pool_from_rows, rows_of, score
from pipelines.spec import ModelSpec
from utils.errors import IntegrityError

FILES = ("model.cb", "spec.json", "profile.json", "golden.json")
GOLDEN_ROWS = 20
TOLERANCE = 1e-9  # CatBoost gives the same bits on one machine; another processor may round its last ones otherwise


@dataclass(frozen=True, slots=True)
class Bundle:
    """A version in memory. `golden` holds `rows`, and `scores` as `_scores` writes them."""

    model: CatBoost
    spec: ModelSpec
    golden: dict[str, Any]
    sha256: str


def bundle_hash(folder: Path) -> str:
    """SHA-256 in hex over the names and bytes of the bundle's files.

    Raises: IntegrityError where one is missing.
    """
    digest = hashlib.sha256()
    for name in FILES:
        if not (folder / name).is_file():
            raise IntegrityError(what=f"model folder {folder.name}", expected=f"a file {name}", found="none")
        digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def write_companions(
    folder: Path, *, model: CatBoost, spec: ModelSpec, profile: dict[str, Any], sample: pd.DataFrame
) -> None:
    """Write spec, profile and golden rows beside the model. `sample` gives the golden rows: its first twenty."""
    rows = rows_of(sample.head(GOLDEN_ROWS), spec=spec)
    golden = {"rows": rows, "scores": _scores(score(model, pool_from_rows(rows, spec=spec), spec=spec))}
    for name, content in (("spec.json", spec.to_json()), ("profile.json", profile), ("golden.json", golden)):
        (folder / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def read_bundle(folder: Path, *, sha256: str) -> Bundle:
    """The bundle in `folder`, after its hash and its golden rows were checked.

    Raises: IntegrityError where the bytes are not those of `sha256`, or the model does not predict as recorded.
    """
    if (found := bundle_hash(folder)) != sha256:
        raise IntegrityError(what=f"model folder {folder.name}", expected=f"SHA-256 {sha256[:12]}", found=found[:12])
    spec = ModelSpec.parse(json.loads((folder / "spec.json").read_text(encoding="utf-8")), file="spec.json")
    model = CatBoostRegressor() if spec.task == "regression" else CatBoostClassifier()
    model.load_model(str(folder / "model.cb"))
    bundle = Bundle(model, spec, json.loads((folder / "golden.json").read_text(encoding="utf-8")), found)
    check_golden(bundle)
    return bundle


def check_golden(bundle: Bundle) -> None:
    """Score the golden rows again.

    Raises: IntegrityError where a score differs by more than 1e-9 of its size.
    """
    again = _scores(score(bundle.model, pool_from_rows(bundle.golden["rows"], spec=bundle.spec), spec=bundle.spec))
    recorded = bundle.golden["scores"]
    if not np.allclose(again, recorded, rtol=TOLERANCE, atol=TOLERANCE):
        apart = float(np.max(np.abs(np.asarray(again) - np.asarray(recorded))))
        raise IntegrityError(
            what="golden rows", expected="the recorded predictions", found=f"a difference of {apart:.2g}"
        )


def _scores(scores: Scores) -> list[Any]:
    """n × classes probabilities, or n predictions for regression."""
    listed: list[Any] = list(scores.predictions) if scores.probabilities is None else scores.probabilities.tolist()
    return listed
