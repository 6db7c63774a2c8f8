"""A bundle: the folder that holds all that serving a version needs, checked against one SHA-256.

model.cb       CatBoost's own format; no pickle
spec.json      the model file as it was when the version was trained
profile.json   the reference profile that drift is measured against
golden.json    made-up rows with the predictions that the trained model gave for them
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.artifact import learner
from pipelines.artifact.bundle_files import bundle_hash
from pipelines.artifact.learner import Model, Scores, pool_from_rows, score
from pipelines.artifact.profile import OTHER
from pipelines.spec import ModelSpec
from utils.errors import IntegrityError

GOLDEN_ROWS, GOLDEN_SEED = 20, 7
COMMON_WORDS, WORDS_FROM = 20, 10_000  # rows
MISSING_SHARE = 0.05
TOLERANCE = 1e-9  # CatBoost gives the same bits on one machine; another processor may round its last ones otherwise


@dataclass(frozen=True, slots=True)
class Bundle:
    """A version in memory. `golden` holds `rows`, and `scores` as `_scores` writes them."""

    model: Model
    spec: ModelSpec
    golden: dict[str, Any]
    sha256: str


def write_companions(
    folder: Path, *, model: Model, spec: ModelSpec, profile: dict[str, Any], fitted: pd.DataFrame
) -> None:
    """Write spec, profile and golden rows beside the model, which was fitted on the rows `fitted`."""
    rows = golden_rows(fitted, profile=profile, spec=spec)
    golden = {"rows": rows, "scores": _scores(score(model, pool_from_rows(rows, spec=spec), spec=spec))}
    for name, content in (("spec.json", spec.to_json()), ("profile.json", profile), ("golden.json", golden)):
        (folder / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def golden_rows(fitted: pd.DataFrame, *, profile: dict[str, Any], spec: ModelSpec) -> list[list[Any]]:
    """Twenty rows for every branch of a model, and nobody's: a bundle is copied to where no row can be deleted again.

    Each value is drawn on its own, from the quantiles and categories of the profile; texts are put together from words
    that more than one entity has.
    """
    random = np.random.default_rng(GOLDEN_SEED)
    columns = []
    for name, entry in profile["features"].items():
        if entry["kind"] == "text":
            words = _shared_words(fitted.drop_duplicates("entity_id")[name])
            values = [" ".join(random.permutation(words)[:3]) or None for _ in range(GOLDEN_ROWS)]
        else:
            known = entry.get("edges") or [each for each in entry.get("categories", ()) if each != OTHER]
            values = (
                [known[place] for place in random.integers(len(known), size=GOLDEN_ROWS)]
                if known
                else [None] * GOLDEN_ROWS
            )
        blank = random.random(GOLDEN_ROWS) < MISSING_SHARE
        columns.append([None if gap else value for gap, value in zip(blank, values, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _shared_words(texts: pd.Series) -> list[str]:
    """The commonest words that more than one of `texts` has."""
    counted = Counter(word for text in texts.dropna().head(WORDS_FROM) for word in set(text.split()))
    shared = (word for word in counted if counted[word] > 1)
    return sorted(shared, key=lambda word: (-counted[word], word))[:COMMON_WORDS]


def read_bundle(folder: Path, *, sha256: str) -> Bundle:
    """The bundle in `folder`, after its hash and its golden rows were checked.

    Raises: IntegrityError where the bytes are not those of `sha256`, or the model does not predict as recorded.
    """
    if (found := bundle_hash(folder)) != sha256:
        raise IntegrityError(what=f"model folder {folder.name}", expected=f"SHA-256 {sha256[:12]}", found=found[:12])
    spec = ModelSpec.parse(json.loads((folder / "spec.json").read_text(encoding="utf-8")), file="spec.json")
    model = learner.load(folder / "model.cb", spec=spec)
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
