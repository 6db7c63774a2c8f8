"""Reasons are the SHAP values of the prediction, for each kind of task."""

from datetime import datetime

import numpy as np
import pytest
import yaml

from api.scoring.predict import LoadedVersion
from api.scoring.reasons import TOP, with_reasons
from pipelines.artifact.bundle import read_bundle
from pipelines.artifact.learner import contributions, pool_from_rows, score
from pipelines.spec import ModelSpec
from tests.bundles import write_bundle

NOW = datetime(2026, 11, 21)
CLASSES = {"multiclass": "[low, middle, high]", "binary": "[stays, leaves]", "regression": "[]"}
FILE = """
name: thing
task: {task}
entity: id
label: {{column: outcome, classes: {classes}}}
features:
  columns:
    size: {{type: numeric, min: 0, max: 10}}
    weight: {{type: numeric, min: 0, max: 10}}
    age: {{type: numeric, min: 0, max: 10}}
    noise: {{type: numeric, min: 0, max: 10}}
    job: {{type: categorical}}
    note: {{type: text}}
"""
ROWS: list[list[float | str | None]] = [
    [9.0, 9.0, 9.0, 5.0, "Doctor", "Auto Loan"],
    [1.0, 1.0, 1.0, 5.0, None, None],
    [None, 5.0, 9.0, 1.0, "Teacher", "Student Loan"],
]


@pytest.fixture(scope="module", params=CLASSES)
def version(request, tmp_path_factory):
    content = yaml.safe_load(FILE.format(task=request.param, classes=CLASSES[request.param]))
    folder = tmp_path_factory.mktemp(request.param)
    spec = ModelSpec.parse(content, file="thing.yaml")
    bundle = read_bundle(folder, sha256=write_bundle(spec, folder))
    return LoadedVersion("thing", 1, bundle, {}, {}, NOW, NOW)


def predicted(version):
    return score(version.bundle.model, pool_from_rows(ROWS, spec=version.bundle.spec), spec=version.bundle.spec)


def test_contributions_add_up_to_the_difference_between_two_raw_scores(version):
    """Contributions start at an average that is the same for all rows, so a difference does not contain it."""
    model, spec = version.bundle.model, version.bundle.spec
    first = predicted(version).predictions[0]
    sums = contributions(model, ROWS, [first] * len(ROWS), spec=spec).sum(axis=1)
    raw = np.asarray(model.predict(pool_from_rows(ROWS, spec=spec), prediction_type="RawFormulaVal"))
    if spec.task == "multiclass":
        raw = raw[:, list(model.classes_).index(first)]
    elif spec.task == "binary":
        raw = raw if first == model.classes_[1] else -raw
    assert sums - sums[0] == pytest.approx(raw - raw[0], abs=1e-6)


def test_reasons_name_the_features_with_the_largest_weights_and_their_values(version):
    spec = version.bundle.spec
    rows = [{"id": "x", **dict(zip(spec.features.columns, values, strict=True))} for values in ROWS]
    answers = [{"prediction": each} for each in predicted(version).predictions]
    explained = with_reasons(version, rows, answers)
    for answer, values in zip(explained, ROWS, strict=True):
        weights = [abs(reason["contribution"]) for reason in answer["reasons"]]
        assert weights == sorted(weights, reverse=True)
        assert 0 < len(weights) <= TOP
        row = dict(zip(spec.features.columns, values, strict=True))
        assert all(reason["value"] == row[reason["feature"]] for reason in answer["reasons"])
    # The label follows the sum of the first three numbers. They are all high in the first row.
    assert {reason["feature"] for reason in explained[0]["reasons"][:3]} == {"size", "weight", "age"}
    assert all(reason["contribution"] > 0 for reason in explained[0]["reasons"][:3])
    assert [{key: value for key, value in each.items() if key != "reasons"} for each in explained] == answers


def test_reasons_of_many_rows_equal_the_reasons_of_each_row(version):
    model, spec, many = version.bundle.model, version.bundle.spec, ROWS * 40
    labels = predicted(version).predictions
    assert contributions(model, many, labels * 40, spec=spec)[:3] == pytest.approx(
        contributions(model, ROWS, labels, spec=spec), abs=1e-9
    )
