"""Golden rows: synthetic rows for every branch of a model, the same rows each time."""

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


def test_golden_rows_are_no_row_of_the_data_and_have_its_kinds_of_values(credit_score):
    frame = rows_for(credit_score, rows=2_000, seed=1)
    frame["type_of_loan"] = [f"Auto Loan of person{i}" for i in range(len(frame))]
    rows = golden_rows_of(frame, credit_score)
    assert rows == golden_rows_of(frame, credit_score)
    assert len(rows) == 20
    real = {json.dumps(row) for row in rows_of(frame, spec=credit_score)}
    assert not real & {json.dumps(row) for row in rows}
    assert "person" not in json.dumps(rows)  # a word that only one row has
    for place, (name, feature) in enumerate(credit_score.features.columns.items()):
        values = [row[place] for row in rows if row[place] is not None]
        assert len(set(values)) > 1, name
        if isinstance(feature, Numeric):
            assert frame[name].min() <= min(values) <= max(values) <= frame[name].max()
        elif isinstance(feature, Categorical):
            assert set(values) <= set(frame[name])
    assert any(value is None for row in rows for value in row)


def test_features_without_values_or_words_are_missing_in_golden_rows(credit_score):
    frame = rows_for(credit_score, rows=50, seed=1).assign(age=np.nan, type_of_loan=None, occupation=None)
    names = list(credit_score.features.columns)
    for row in golden_rows_of(frame, credit_score):
        assert [row[names.index(name)] for name in ("age", "type_of_loan", "occupation")] == [None] * 3


def test_golden_rows_detect_a_model_with_other_predictions(credit_score, tmp_path):
    write_bundle(credit_score, tmp_path / "one", seed=1)
    write_bundle(credit_score, tmp_path / "other", seed=2)
    (tmp_path / "one" / "model.cb").write_bytes((tmp_path / "other" / "model.cb").read_bytes())
    with pytest.raises(IntegrityError, match="golden rows"):
        read_bundle(tmp_path / "one", sha256=bundle_hash(tmp_path / "one"))
