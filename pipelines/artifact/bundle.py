"""A bundle: the folder with the files that serve a version, checked against one SHA-256.

model.cb       CatBoost's own format; no pickle
spec.json      the model file as it was when the version was trained
profile.json   the reference profile that drift is measured against
golden.json    synthetic rows with the predictions of the trained model
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
TOLERANCE = 1e-9  # results are bitwise equal on one machine; another processor may round differently


@dataclass(frozen=True, slots=True)
class Bundle:
    """A version in memory.

    golden: the golden rows as `rows`, and their predictions as `scores`, in the form of `_scores`.
    sha256: the hash of the bundle's files.
    """

    model: Model
    spec: ModelSpec
    golden: dict[str, Any]
    sha256: str


def write_companions(
    folder: Path, *, model: Model, spec: ModelSpec, profile: dict[str, Any], fitted: pd.DataFrame
) -> None:
    """Write spec, profile and golden rows next to the model, which was fitted on the rows `fitted`."""
    rows = golden_rows(fitted, profile=profile, spec=spec)
    golden = {"rows": rows, "scores": _scores(score(model, pool_from_rows(rows, spec=spec), spec=spec))}
    for name, content in (("spec.json", spec.to_json()), ("profile.json", profile), ("golden.json", golden)):
        (folder / name).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def golden_rows(fitted: pd.DataFrame, *, profile: dict[str, Any], spec: ModelSpec) -> list[list[Any]]:
    """Twenty synthetic rows for the branches of a model.

    No real row is used, because rows can't be deleted from the copies of a bundle. Each value is drawn independently
    from the quantiles or categories of the profile. Texts consist of words that more than one entity has.
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
        blank = random.random(GOLDEN_ROWS) < MISSING_SHARE
        columns.append([None if is_blank else value for is_blank, value in zip(blank, values, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _shared_words(texts: pd.Series) -> list[str]:
    """The most frequent words that occur in more than one of `texts`."""
    counts = Counter(word for text in texts.dropna().head(WORDS_FROM) for word in set(text.split()))
    shared = (word for word in counts if counts[word] > 1)
    return sorted(shared, key=lambda word: (-counts[word], word))[:COMMON_WORDS]


def read_bundle(folder: Path, *, sha256: str) -> Bundle:
    """Read the bundle in `folder`, and check its hash and its golden rows.

    Raises: IntegrityError if the hash is not `sha256`, or if the predictions differ from the recorded ones.
    """
    if (actual := bundle_hash(folder)) != sha256:
        raise IntegrityError(what=f"model folder {folder.name}", expected=f"SHA-256 {sha256[:12]}", found=actual[:12])
    spec = ModelSpec.parse(json.loads((folder / "spec.json").read_text(encoding="utf-8")), file="spec.json")
    model = learner.load(folder / "model.cb", spec=spec)
    bundle = Bundle(model, spec, json.loads((folder / "golden.json").read_text(encoding="utf-8")), actual)
    check_golden(bundle)
    return bundle


def check_golden(bundle: Bundle) -> None:
    """Score the golden rows again and compare the results with the recorded ones.

    Raises: IntegrityError if a score differs by more than 1e-9, relative and absolute.
    """
    scores = _scores(score(bundle.model, pool_from_rows(bundle.golden["rows"], spec=bundle.spec), spec=bundle.spec))
    recorded = bundle.golden["scores"]
    if not np.allclose(scores, recorded, rtol=TOLERANCE, atol=TOLERANCE):
        difference = float(np.max(np.abs(np.asarray(scores) - np.asarray(recorded))))
        raise IntegrityError(
            what="golden rows", expected="the recorded predictions", found=f"a difference of {difference:.2g}"
        )


def _scores(scores: Scores) -> list[Any]:
    """JSON-ready scores of n rows: n × classes probabilities, or n predictions for regression."""
    values: list[Any] = list(scores.predictions) if scores.probabilities is None else scores.probabilities.tolist()
    return values
