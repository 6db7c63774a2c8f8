"""A bundle: the folder with the files from which services load a version. One SHA-256 covers all files.

model.cb       the model in CatBoost's own format, which is no pickle
spec.json      the model file at the time of the training
profile.json   the reference profile from which drift is measured
golden.json    synthetic rows with the predictions of the model
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
MOST_WORDS = 20  # different words of a text feature in the golden rows
WORD_ROWS = 10_000  # rows from which the words are taken
MISSING_SHARE = 0.05  # of the values in golden rows
TOLERANCE = 1e-9  # for scores, because another processor may round differently


@dataclass(frozen=True, slots=True)
class Bundle:
    """A version in memory.

    golden: the golden rows under `rows`, and their scores under `scores`, in the form of `_scores_as_json`.
    sha256: the hash of the bundle's files.
    """

    model: Model
    spec: ModelSpec
    golden: dict[str, Any]
    sha256: str


def write_companions(
    folder: Path, *, model: Model, spec: ModelSpec, profile: dict[str, Any], fitted: pd.DataFrame
) -> None:
    """Write the spec, the profile and the golden rows into `folder`, which already has the model.

    fitted: the rows on which the model was fitted.
    """
    rows = golden_rows(fitted, profile=profile, spec=spec)
    golden = {"rows": rows, "scores": _scores_as_json(score(model, pool_from_rows(rows, spec=spec), spec=spec))}
    for name, content in (("spec.json", spec.to_json()), ("profile.json", profile), ("golden.json", golden)):
        (folder / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def golden_rows(fitted: pd.DataFrame, *, profile: dict[str, Any], spec: ModelSpec) -> list[list[Any]]:
    """Draw twenty synthetic rows. Each value comes from the quantiles or the categories of the profile.

    The rows contain no real row, because a forgotten entity can't be deleted from the copies of a bundle. For the same
    reason, texts consist of words that more than one entity has.

    fitted: the rows on which the model was fitted.
    """
    random = np.random.default_rng(GOLDEN_SEED)
    columns = []
    for name, entry in profile["features"].items():
        if entry["kind"] == "text":
            words = _shared_words(fitted.drop_duplicates("entity_id")[name])
            values = [" ".join(random.permutation(words)[:3]) or None for _ in range(GOLDEN_ROWS)]
        else:
            choices = entry.get("edges") or [category for category in entry.get("categories", ()) if category != OTHER]
            values = (
                [choices[index] for index in random.integers(len(choices), size=GOLDEN_ROWS)]
                if choices
                else [None] * GOLDEN_ROWS
            )
        is_missing = random.random(GOLDEN_ROWS) < MISSING_SHARE
        columns.append([None if missing else value for missing, value in zip(is_missing, values, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _shared_words(texts: pd.Series) -> list[str]:
    """The most frequent words that occur in more than one of `texts`."""
    text_counts = Counter(word for text in texts.dropna().head(WORD_ROWS) for word in set(text.split()))
    shared_words = (word for word in text_counts if text_counts[word] > 1)
    return sorted(shared_words, key=lambda word: (-text_counts[word], word))[:MOST_WORDS]


def read_bundle(folder: Path, *, sha256: str) -> Bundle:
    """Read the bundle in `folder`, and check its hash and the predictions of its golden rows.

    Raises: IntegrityError if the hash is not `sha256`, or if a prediction differs from the recorded prediction.
    """
    if (actual_hash := bundle_hash(folder)) != sha256:
        raise IntegrityError(
            what=f"model folder {folder.name}", expected=f"SHA-256 {sha256[:12]}", found=actual_hash[:12]
        )
    spec = ModelSpec.parse(json.loads((folder / "spec.json").read_text(encoding="utf-8")), file="spec.json")
    model = learner.load(folder / "model.cb", spec=spec)
    bundle = Bundle(model, spec, json.loads((folder / "golden.json").read_text(encoding="utf-8")), actual_hash)
    check_golden(bundle)
    return bundle


def check_golden(bundle: Bundle) -> None:
    """Score the golden rows again and compare the scores with the recorded scores.

    Raises: IntegrityError if a score differs by more than `TOLERANCE`, relative and absolute.
    """
    scores = _scores_as_json(
        score(bundle.model, pool_from_rows(bundle.golden["rows"], spec=bundle.spec), spec=bundle.spec)
    )
    recorded_scores = bundle.golden["scores"]
    if not np.allclose(scores, recorded_scores, rtol=TOLERANCE, atol=TOLERANCE):
        difference = float(np.max(np.abs(np.asarray(scores) - np.asarray(recorded_scores))))
        raise IntegrityError(
            what="golden rows", expected="the recorded predictions", found=f"a difference of {difference:.2g}"
        )


def _scores_as_json(scores: Scores) -> list[Any]:
    """The scores of n rows as JSON: n lists of class probabilities, or n predictions for a regression."""
    values: list[Any] = list(scores.predictions) if scores.probabilities is None else scores.probabilities.tolist()
    return values
