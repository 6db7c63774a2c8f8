"""The example data of `churn` and `insurance`, which has no time."""

from datetime import datetime

import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from pipelines.loading.checking import check
from pipelines.loading.columns import Columns
from pipelines.spec import ModelSpec, find_spec
from stack.example_data.worlds import GENERATORS, example_world
from utils.version import ROOT

END = datetime(2026, 11, 21)
MODELS = ("churn", "insurance")


@pytest.fixture(params=MODELS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return find_spec(ROOT / "models", request.param)


def test_every_row_passes_the_checks_of_the_model_file(spec: ModelSpec) -> None:
    frame = GENERATORS[spec.name](END, 7, 6000).frame
    assert set(frame.columns) == {spec.entity, spec.label.column, *spec.features.columns, *spec.features.private}
    columns = Columns.of(list(frame.columns), spec=spec, source="example")
    rows = pa.Table.from_pandas(frame[list(columns.taken)], preserve_index=False)
    assert check(rows, spec=spec, columns=columns, lines=range(2, 2 + rows.num_rows)).rejects == []


def test_some_values_are_missing_and_no_entity_appears_twice(spec: ModelSpec) -> None:
    frame = GENERATORS[spec.name](END, 7, 6000).frame
    assert frame[spec.entity].is_unique
    assert (frame.isna().mean() > 0.01).sum() >= 2
    assert frame.isna().mean().max() < 0.06


def test_the_data_does_not_depend_on_the_day_and_more_people_only_add_rows(spec: ModelSpec) -> None:
    today = example_world(spec.name, end=END, customers=200)
    later = example_world(spec.name, end=datetime(2030, 1, 1), customers=300)
    pd.testing.assert_frame_equal(today, later.head(200))
    assert not today.equals(example_world(spec.name, end=END, seed=8, customers=200))


def test_the_best_possible_predictions_are_good_but_not_perfect() -> None:
    churn, insurance = (GENERATORS[name](END, 7, 6000) for name in MODELS)
    leaves = churn.frame["outcome"] == "leaves"
    assert 0.2 < leaves.mean() < 0.35
    assert 0.83 < roc_auc_score(leaves, churn.probabilities[:, 1]) < 0.9
    assert (churn.best_predictions == churn.frame["outcome"]).mean() > 0.8
    assert 0.8 < r2_score(insurance.frame["yearly_cost"], insurance.best_predictions) < 0.92
