"""The metrics agree with scikit-learn on random predictions, and the resampling draws whole entities."""

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
    scores = generator.integers(1, 6, (rows, classes)).astype(float)  # few different scores, so that ties are common
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    return JudgedRows(truth, probabilities.argmax(axis=1), probabilities, classes)


@settings(max_examples=100)
@given(judged_classes())
def test_metrics_of_classes_agree_with_scikit_learn(judged_rows: JudgedRows) -> None:
    macro_f1 = sk.f1_score(
        judged_rows.truth, judged_rows.predicted, labels=sorted(set(judged_rows.truth)), average="macro"
    )
    assert metric_value("macro_f1", judged_rows) == pytest.approx(macro_f1)
    assert metric_value("accuracy", judged_rows) == pytest.approx(
        sk.accuracy_score(judged_rows.truth, judged_rows.predicted)
    )
    loss = sk.log_loss(judged_rows.truth, judged_rows.probabilities, labels=range(CLASSES))
    assert metric_value("log_loss", judged_rows) == pytest.approx(loss)


@settings(max_examples=100)
@given(judged_classes(classes=2), st.integers(0, 1000))
def test_weighted_roc_auc_and_f1_agree_with_scikit_learn(judged_rows: JudgedRows, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(1, 4, (2, len(judged_rows.truth))).astype(float)
    assert judged_rows.probabilities is not None
    roc_auc = [
        sk.roc_auc_score(judged_rows.truth, judged_rows.probabilities[:, 1], sample_weight=row) for row in weights
    ]
    assert weighted_metric("roc_auc", judged_rows, weights) == pytest.approx(roc_auc)
    f1 = [sk.f1_score(judged_rows.truth, judged_rows.predicted, sample_weight=row) for row in weights]
    assert weighted_metric("f1", judged_rows, weights) == pytest.approx(f1)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_metrics_of_numbers_agree_with_scikit_learn(seed: int, rows: int) -> None:
    truth, predicted = np.random.default_rng(seed).normal(size=(2, rows))
    judged_rows = JudgedRows(truth, predicted, None, 0)
    assert metric_value("rmse", judged_rows) == pytest.approx(sk.root_mean_squared_error(truth, predicted))
    assert metric_value("mae", judged_rows) == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert metric_value("r2", judged_rows) == pytest.approx(sk.r2_score(truth, predicted))


def test_all_rows_of_an_entity_have_the_same_weight_in_a_resample() -> None:
    entities = np.array(["a", "b", "a", "c", "b"])
    weights = np.concatenate(entity_weights(entities, seed=1, resamples=200))
    assert weights.shape == (200, 5)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()


def test_the_bootstrap_error_depends_on_the_number_of_entities_and_not_of_rows() -> None:
    generator = np.random.default_rng(3)
    entities = np.repeat([f"e{i}" for i in range(100)], 50)
    correct = np.repeat(generator.integers(0, 2, 100), 50)
    judged_rows = JudgedRows(np.ones(5000, int), correct, None, 2)
    resampled = np.concatenate(
        [weighted_metric("accuracy", judged_rows, weights) for weights in entity_weights(entities, seed=1)]
    )
    assert resampled.std() == pytest.approx(np.sqrt(0.25 / 100), rel=0.15)


def test_the_resampling_unit_is_the_entity_or_the_day_or_the_row_if_there_are_too_few() -> None:
    hours = np.arange("2026-01-01", "2026-01-31", dtype="datetime64[h]")
    customers = np.array([f"c{i % 40}" for i in range(len(hours))])
    assert (resampling_units(customers, hours) == customers).all()
    one_entity = np.full(len(hours), "the city")
    assert len(np.unique(resampling_units(one_entity, hours))) == 30
    assert len(np.unique(resampling_units(one_entity[:48], hours[:48]))) == 48


def test_a_class_that_is_only_predicted_lowers_only_the_f1_of_the_true_class() -> None:
    truth, predicted = np.array([0] * 12 + [1] * 3), np.array([0] * 12 + [1] * 2 + [2])
    macro_f1 = metric_value("macro_f1", JudgedRows(truth, predicted, None, 3))
    assert macro_f1 == pytest.approx((1 + 0.8) / 2)
