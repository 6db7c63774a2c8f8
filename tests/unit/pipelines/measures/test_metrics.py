"""Metrics compared with scikit-learn on random predictions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipelines.measures.metrics import JudgedRows, entity_weights, metric_value, resampling_units, weighted_metric

CLASSES = 3


@st.composite
def judged_classes(draw: st.DrawFn, classes: int = CLASSES) -> JudgedRows:
    seed, rows = draw(st.integers(0, 2**32 - 1)), draw(st.integers(classes * 2, 60))
    generator = np.random.default_rng(seed)
    truth = np.r_[np.arange(classes), generator.integers(0, classes, rows - classes)]
    # Few levels, so that ties are common.
    raw = generator.integers(1, 6, (rows, classes)).astype(float)
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    return JudgedRows(truth, probabilities.argmax(axis=1), probabilities, classes)


@settings(max_examples=100)
@given(judged_classes())
def test_class_metrics_agree_with_scikit_learn(judged: JudgedRows) -> None:
    expected = sk.f1_score(judged.truth, judged.predicted, labels=sorted(set(judged.truth)), average="macro")
    assert metric_value("macro_f1", judged) == pytest.approx(expected)
    assert metric_value("accuracy", judged) == pytest.approx(sk.accuracy_score(judged.truth, judged.predicted))
    loss = sk.log_loss(judged.truth, judged.probabilities, labels=range(CLASSES))
    assert metric_value("log_loss", judged) == pytest.approx(loss)


@settings(max_examples=100)
@given(judged_classes(classes=2), st.integers(0, 1000))
def test_weighted_area_under_the_curve_agrees_with_scikit_learn(judged: JudgedRows, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(1, 4, (2, len(judged.truth))).astype(float)
    assert judged.probabilities is not None
    expected = [sk.roc_auc_score(judged.truth, judged.probabilities[:, 1], sample_weight=row) for row in weights]
    assert weighted_metric("roc_auc", judged, weights) == pytest.approx(expected)
    f1 = [sk.f1_score(judged.truth, judged.predicted, sample_weight=row) for row in weights]
    assert weighted_metric("f1", judged, weights) == pytest.approx(f1)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_regression_metrics_agree_with_scikit_learn(seed: int, rows: int) -> None:
    truth, predicted = np.random.default_rng(seed).normal(size=(2, rows))
    judged = JudgedRows(truth, predicted, None, 0)
    assert metric_value("rmse", judged) == pytest.approx(sk.root_mean_squared_error(truth, predicted))
    assert metric_value("mae", judged) == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert metric_value("r2", judged) == pytest.approx(sk.r2_score(truth, predicted))


def test_resampling_draws_all_rows_of_an_entity_together() -> None:
    entities = np.array(["a", "b", "a", "c", "b"])
    weights = np.concatenate(entity_weights(entities, seed=1, resamples=200))
    assert weights.shape == (200, 5)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()


def test_an_interval_of_clustered_rows_is_as_wide_as_the_clusters_are_few() -> None:
    generator = np.random.default_rng(3)
    entities = np.repeat([f"e{i}" for i in range(100)], 50)
    right = np.repeat(generator.integers(0, 2, 100), 50)
    judged = JudgedRows(np.ones(5000, int), right, None, 2)
    of_entities = np.concatenate([weighted_metric("accuracy", judged, w) for w in entity_weights(entities, seed=1)])
    assert of_entities.std() == pytest.approx(np.sqrt(0.25 / 100), rel=0.15)


def test_rows_are_drawn_by_entity_and_rows_of_one_long_series_by_day() -> None:
    hours = np.arange("2026-01-01", "2026-01-31", dtype="datetime64[h]")
    customers = np.array([f"c{i % 40}" for i in range(len(hours))])
    assert (resampling_units(customers, hours) == customers).all()
    series = np.full(len(hours), "the city")
    assert len(np.unique(resampling_units(series, hours))) == 30
    assert len(np.unique(resampling_units(series[:48], hours[:48]))) == 48


def test_a_class_that_is_only_predicted_lowers_only_the_score_of_the_true_class() -> None:
    truth, predicted = np.array([0] * 12 + [1] * 3), np.array([0] * 12 + [1] * 2 + [2])
    score = metric_value("macro_f1", JudgedRows(truth, predicted, None, 3))
    assert score == pytest.approx((1 + 0.8) / 2)
