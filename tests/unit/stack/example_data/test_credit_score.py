from datetime import datetime, timedelta

import pandas as pd
import pytest
from sklearn.metrics import f1_score

from pipelines.loading.checking import check
from pipelines.loading.columns import Columns
from pipelines.spec import ModelSpec
from stack.example_data.credit_score import MISSING_SHARES
from stack.example_data.world import ExampleData
from stack.example_data.worlds import GENERATORS, example_world
from utils.errors import NotFound

END = datetime(2026, 11, 21, 9, 30)


@pytest.fixture(scope="module")
def example_data() -> ExampleData:
    return GENERATORS["credit_score"](END, 7, 6000)


def test_the_best_possible_macro_f1_is_between_0_72_and_0_80(example_data):
    assert 0.72 <= f1_score(example_data.frame["credit_score"], example_data.best_predictions, average="macro") <= 0.80


def test_probabilities_add_up_to_1_and_no_class_is_rare(example_data):
    assert example_data.probabilities.min() > 0
    assert example_data.probabilities.sum(axis=1) == pytest.approx(1)
    assert example_data.frame["credit_score"].value_counts(normalize=True).min() > 0.15


def test_every_day_up_to_today_has_enough_customers_and_labels(example_data):
    frame = example_data.frame
    assert frame["customer_id"].nunique() == 6000
    assert len(frame) >= 50_000
    assert frame["date"].max() == datetime(2026, 11, 21)
    assert frame["date"].max() - frame["date"].min() >= timedelta(days=365)
    assert (frame["date"].value_counts() > 100).all()
    assert not frame.duplicated(["customer_id", "date"]).any()


def test_the_columns_are_those_of_the_model_file_including_private_columns(example_data, credit_score):
    expected = {"customer_id", "date", "credit_score", *credit_score.features.columns, *credit_score.features.private}
    assert set(example_data.frame.columns) == expected


def test_every_row_passes_the_checks_of_the_model_file(example_data, credit_score: ModelSpec):
    import pyarrow as pa

    columns = Columns.of(list(example_data.frame.columns), spec=credit_score, source="example")
    rows = pa.Table.from_pandas(example_data.frame[list(columns.taken)], preserve_index=False)
    assert check(rows, spec=credit_score, columns=columns, lines=range(2, 2 + rows.num_rows)).rejects == []


def test_some_values_are_missing(example_data):
    shares = example_data.frame[list(MISSING_SHARES)].isna().mean()
    assert shares.between(0.005, 0.04).all()


def test_the_same_seed_gives_the_same_data_and_another_seed_gives_other_data():
    seed_7, seed_7_again, seed_8 = (
        example_world("credit_score", end=END, seed=seed, customers=50) for seed in (7, 7, 8)
    )
    pd.testing.assert_frame_equal(seed_7, seed_7_again)
    assert not seed_7.equals(seed_8)


def test_the_data_of_tomorrow_has_the_same_rows_as_the_data_of_today_on_their_common_days():
    today = example_world("credit_score", end=END, customers=200)
    tomorrow = example_world("credit_score", end=datetime(2026, 11, 22), customers=200)
    common_rows = today.merge(tomorrow, on=["customer_id", "date"])
    assert len(common_rows) > 2500
    pd.testing.assert_frame_equal(
        today[today["date"] >= tomorrow["date"].min()].reset_index(drop=True),
        tomorrow[tomorrow["date"] <= today["date"].max()].reset_index(drop=True),
    )


def test_consecutive_values_of_a_customer_are_correlated(example_data):
    rows = example_data.frame.sort_values(["customer_id", "date"])
    next_debt = rows.groupby("customer_id")["outstanding_debt"].shift(-1)
    assert rows["outstanding_debt"].corr(next_debt, method="spearman") > 0.9


def test_the_error_for_a_model_without_an_example_names_the_models_that_have_one():
    with pytest.raises(NotFound, match=r"example data for other.*credit_score, churn, insurance"):
        example_world("other", end=END)
