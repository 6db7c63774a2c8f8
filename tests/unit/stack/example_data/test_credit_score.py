from datetime import datetime, timedelta

import pandas as pd
import pytest
from sklearn.metrics import f1_score

from pipelines.loading.checking import check
from pipelines.loading.columns import Columns
from pipelines.spec import ModelSpec
from stack.example_data.credit_score import MISSING_SHARES
from stack.example_data.world import World
from stack.example_data.worlds import WORLDS, example_world
from utils.errors import NotFound

END = datetime(2026, 11, 21, 9, 30)


@pytest.fixture(scope="module")
def world() -> World:
    return WORLDS["credit_score"](END, 7, 6000)


def test_the_best_reachable_macro_f1_leaves_room_for_models_to_differ(world):
    assert 0.72 <= f1_score(world.frame["credit_score"], world.bayes, average="macro") <= 0.80


def test_probabilities_add_up_and_every_class_is_common(world):
    assert world.probabilities.min() > 0
    assert world.probabilities.sum(axis=1) == pytest.approx(1)
    assert world.frame["credit_score"].value_counts(normalize=True).min() > 0.15


def test_every_day_up_to_today_has_enough_customers_and_labels(world):
    frame = world.frame
    assert frame["customer_id"].nunique() == 6000
    assert len(frame) >= 50_000
    assert frame["date"].max() == datetime(2026, 11, 21)
    assert frame["date"].max() - frame["date"].min() >= timedelta(days=365)
    assert (frame["date"].value_counts() > 100).all()
    assert not frame.duplicated(["customer_id", "date"]).any()


def test_its_columns_are_those_of_the_model_file_including_private_columns(world, credit_score):
    expected = {"customer_id", "date", "credit_score", *credit_score.features.columns, *credit_score.features.private}
    assert set(world.frame.columns) == expected


def test_every_row_keeps_the_rules_of_the_model_file(world, credit_score: ModelSpec):
    import pyarrow as pa

    columns = Columns.of(list(world.frame.columns), spec=credit_score, source="example")
    rows = pa.Table.from_pandas(world.frame[list(columns.taken)], preserve_index=False)
    assert check(rows, spec=credit_score, columns=columns, lines=range(2, 2 + rows.num_rows)).rejects == []


def test_some_values_are_missing(world):
    shares = world.frame[list(MISSING_SHARES)].isna().mean()
    assert shares.between(0.005, 0.04).all()


def test_the_same_seed_gives_the_same_world_and_another_seed_another_world():
    first, same, other = (example_world("credit_score", end=END, seed=seed, customers=50) for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(first, same)
    assert not first.equals(other)


def test_the_world_of_tomorrow_is_the_world_of_today_with_one_more_day():
    today = example_world("credit_score", end=END, customers=200)
    tomorrow = example_world("credit_score", end=datetime(2026, 11, 22), customers=200)
    both = today.merge(tomorrow, on=["customer_id", "date"])
    assert len(both) > 2500
    pd.testing.assert_frame_equal(
        today[today["date"] >= tomorrow["date"].min()].reset_index(drop=True),
        tomorrow[tomorrow["date"] <= today["date"].max()].reset_index(drop=True),
    )


def test_values_move_slowly_within_a_customer(world):
    wide = world.frame.sort_values(["customer_id", "date"])
    following = wide.groupby("customer_id")["outstanding_debt"].shift(-1)
    assert wide["outstanding_debt"].corr(following, method="spearman") > 0.9


def test_the_error_for_a_model_without_an_example_names_the_models_that_have_one():
    with pytest.raises(NotFound, match=r"example data for other.*credit_score, churn, insurance"):
        example_world("other", end=END)
