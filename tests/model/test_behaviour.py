"""Properties of a trained model of the example world that do not depend on its exact score."""

from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from catboost import CatBoost

from pipelines.artifact.learner import fit, pool_from_frame, pool_from_rows, rows_of, score
from pipelines.measures.metrics import judge, metric_value
from pipelines.spec import ModelSpec
from pipelines.training.split import Split, split_rows
from stack.example_data import worlds

END = datetime(2026, 9, 30)
PARAMS = {"depth": 4, "learning_rate": 0.2, "l2_leaf_reg": 3}
POOR = 0  # index among the classes


@pytest.fixture(scope="module")
def parts(credit_score: ModelSpec) -> Split:
    world = worlds.example_world("credit_score", end=END, customers=1500)
    rows = world.rename(columns={"customer_id": "entity_id", "date": "event_time"})
    return split_rows(rows, spec=credit_score, until=pd.Timestamp(END))


@pytest.fixture(scope="module")
def model(parts: Split, credit_score: ModelSpec) -> CatBoost:
    return fit(parts.train, spec=credit_score, params=PARAMS, trees=150)


def chances(model: CatBoost, rows: pd.DataFrame, spec: ModelSpec) -> np.ndarray:
    probabilities = score(model, pool_from_frame(rows, spec=spec, label=False), spec=spec).probabilities
    assert probabilities is not None
    return probabilities


def test_it_beats_always_naming_the_commonest_class_by_far(
    model: CatBoost, parts: Split, credit_score: ModelSpec
) -> None:
    scored = score(model, pool_from_frame(parts.test, spec=credit_score, label=False), spec=credit_score)
    judged = judge(parts.test["credit_score"].to_numpy(), scored, spec=credit_score)
    assert metric_value("macro_f1", judged) > 0.65
    assert metric_value("accuracy", judged) > parts.test["credit_score"].value_counts(normalize=True).max() + 0.2


def test_later_payments_and_more_debt_make_a_poor_score_likelier(
    model: CatBoost, parts: Split, credit_score: ModelSpec
) -> None:
    worse = parts.test.assign(
        delay_from_due_date=parts.test["delay_from_due_date"] + 20,
        outstanding_debt=parts.test["outstanding_debt"] * 2,
        credit_mix="Bad",
    )
    rise = chances(model, worse, credit_score)[:, POOR] - chances(model, parts.test, credit_score)[:, POOR]
    assert rise.mean() > 0.1
    assert (rise > -0.05).mean() > 0.9


def test_the_identity_of_customers_and_the_order_of_rows_change_nothing(
    model: CatBoost, parts: Split, credit_score: ModelSpec
) -> None:
    before = chances(model, parts.test, credit_score)
    renamed = parts.test.assign(entity_id="someone", name="Else", ssn="000-00-0000")[::-1]
    assert (chances(model, renamed, credit_score)[::-1] == before).all()


def test_rows_and_frames_give_the_same_scores(model: CatBoost, parts: Split, credit_score: ModelSpec) -> None:
    frame = parts.test.head(200)
    scores = score(model, pool_from_rows(rows_of(frame, spec=credit_score), spec=credit_score), spec=credit_score)
    assert scores.probabilities == pytest.approx(chances(model, frame, credit_score), abs=1e-12)


def test_a_row_of_nothing_but_missing_values_is_scored(model: CatBoost, credit_score: ModelSpec) -> None:
    empty = pool_from_rows([[None] * len(credit_score.features.columns)], spec=credit_score)
    probabilities = score(model, empty, spec=credit_score).probabilities
    assert probabilities is not None
    assert probabilities.sum() == pytest.approx(1)


def test_the_same_rows_and_parameters_give_the_same_model(
    model: CatBoost, parts: Split, credit_score: ModelSpec
) -> None:
    second = fit(parts.train, spec=credit_score, params=PARAMS, trees=150)
    assert (chances(second, parts.test, credit_score) == chances(model, parts.test, credit_score)).all()
