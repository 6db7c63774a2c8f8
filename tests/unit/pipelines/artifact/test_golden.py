"""Golden rows: synthetic rows that are the same at every call, and that detect another model."""

import json

import numpy as np
import pytest

from pipelines.artifact.bundle import golden_rows, read_bundle
from pipelines.artifact.bundle_files import bundle_hash
from pipelines.artifact.learner import rows_of
from pipelines.artifact.profile import build_profile
from pipelines.spec import Categorical, Numeric
from tests.bundles import rows_for, write_bundle
from utils.errors import IntegrityError


def golden_rows_of(frame, spec):
    profile = build_profile(frame, ["Good"] * len(frame), spec=spec)
    return golden_rows(frame, profile=profile, spec=spec)


def test_golden_rows_are_not_rows_of_the_data_and_have_values_from_the_same_ranges(credit_score):
    frame = rows_for(credit_score, rows=2_000, seed=1)
    frame["type_of_loan"] = [f"Auto Loan of person{i}" for i in range(len(frame))]
    rows = golden_rows_of(frame, credit_score)
    assert rows == golden_rows_of(frame, credit_score)
    assert len(rows) == 20
    data_rows = {json.dumps(row) for row in rows_of(frame, spec=credit_score)}
    assert not data_rows & {json.dumps(row) for row in rows}
    assert "person" not in json.dumps(rows)  # each of these words is in only one row
    for position, (name, feature) in enumerate(credit_score.features.columns.items()):
        values = [row[position] for row in rows if row[position] is not None]
        assert len(set(values)) > 1, name
        if isinstance(feature, Numeric):
            assert frame[name].min() <= min(values) <= max(values) <= frame[name].max()
        elif isinstance(feature, Categorical):
            assert set(values) <= set(frame[name])
    assert any(value is None for row in rows for value in row)


def test_golden_rows_have_no_value_of_a_feature_without_values_or_words(credit_score):
    frame = rows_for(credit_score, rows=50, seed=1).assign(age=np.nan, type_of_loan=None, occupation=None)
    names = list(credit_score.features.columns)
    for row in golden_rows_of(frame, credit_score):
        assert [row[names.index(name)] for name in ("age", "type_of_loan", "occupation")] == [None] * 3


def test_a_bundle_whose_model_predicts_other_values_for_the_golden_rows_is_rejected(credit_score, tmp_path):
    bundle, other_bundle = tmp_path / "bundle", tmp_path / "other_bundle"
    write_bundle(credit_score, bundle, seed=1)
    write_bundle(credit_score, other_bundle, seed=2)
    (bundle / "model.cb").write_bytes((other_bundle / "model.cb").read_bytes())
    with pytest.raises(IntegrityError, match="golden rows"):
        read_bundle(bundle, sha256=bundle_hash(bundle))
