"""The changes of each scenario in the example world. Everything else stays the same."""

from datetime import datetime
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.artifact.profile import build_profile, count_by_bin, psi, recorded_counts
from pipelines.loading.checking import check
from pipelines.loading.columns import Columns
from pipelines.spec import find_spec
from stack.example_data.scenario_names import Scenario
from stack.example_data.scenarios import CREDIT, LEVERS, traffic
from utils.errors import NotFound
from utils.version import ROOT

END = datetime(2026, 11, 21, 9, 30)
ROWS, SEED = 5_000, 3
INCOMES = set(CREDIT.rising)
PAY = {"annual_income", "monthly_inhand_salary"}


@cache
def draws_for(model):
    return {each: traffic(model, scenario=each, end=END, rows=ROWS, seed=SEED) for each in Scenario}


@pytest.fixture
def draws():
    return draws_for("credit_score")


@pytest.fixture
def unchanged(draws):
    return draws[Scenario.NONE]


def drifts(unchanged, changed, spec):
    """The population stability index of each feature of `changed`, with `unchanged` as the reference."""
    frame = unchanged.features.assign(event_time=END)
    profile = build_profile(frame, unchanged.labels.tolist(), spec=spec)["features"]
    return {
        name: psi(recorded_counts(profile[name]), count_by_bin(changed.features[name], profile[name]))
        for name in profile
    }


def test_none_is_the_same_people_each_time_in_the_world_of_the_loaded_example(unchanged, credit_score):
    repeated = traffic("credit_score", scenario=Scenario.NONE, end=END, rows=ROWS, seed=SEED)
    pd.testing.assert_frame_equal(unchanged.features, repeated.features)
    pd.testing.assert_series_equal(unchanged.labels, repeated.labels)
    other_people = traffic("credit_score", scenario=Scenario.NONE, end=END, rows=ROWS, seed=SEED + 1)
    assert max(drifts(unchanged, other_people, credit_score).values()) < 0.02
    shares = [each.labels.value_counts(normalize=True) for each in (unchanged, other_people)]
    assert abs(shares[0] - shares[1]).max() < 0.03


def test_a_smaller_draw_is_the_start_of_a_larger_one_and_another_seed_draws_other_people(unchanged):
    few = traffic("credit_score", scenario=Scenario.NONE, end=END, rows=40, seed=SEED)
    pd.testing.assert_frame_equal(few.features, unchanged.features.head(40))
    other_people = traffic("credit_score", scenario=Scenario.NONE, end=END, rows=40, seed=SEED + 1)
    assert not few.features.equals(other_people.features)


def test_covariate_raises_incomes_by_half_a_standard_deviation_and_nothing_else(draws, unchanged, credit_score):
    raised = draws[Scenario.COVARIATE]
    columns = raised.features.columns.difference(list(INCOMES))
    pd.testing.assert_frame_equal(raised.features[columns], unchanged.features[columns])
    pd.testing.assert_series_equal(raised.labels, unchanged.labels)
    before, after = (np.log(each.features["annual_income"]) for each in (unchanged, raised))
    assert (after.mean() - before.mean()) / before.std() == pytest.approx(0.5, abs=0.05)
    moved = {name for name, index in drifts(unchanged, raised, credit_score).items() if index > 0.02}
    assert moved == INCOMES


def test_concept_changes_who_gets_which_label_and_no_feature(draws, unchanged):
    changed = draws[Scenario.CONCEPT]
    pd.testing.assert_frame_equal(changed.features, unchanged.features)
    assert 0.1 < (changed.labels != unchanged.labels).mean() < 0.3
    shares = [each.labels.value_counts(normalize=True) for each in (unchanged, changed)]
    assert abs(shares[0] - shares[1]).max() < 0.05  # the rule changes, the shares of the classes hardly do

    def follows(labels, feature):
        return (labels == "Poor").astype(float).corr(unchanged.features[feature], method="spearman")

    assert follows(changed.labels, "outstanding_debt") > follows(unchanged.labels, "outstanding_debt") + 0.03
    assert follows(changed.labels, "interest_rate") < follows(unchanged.labels, "interest_rate") - 0.03


def test_prior_makes_one_class_commoner_and_leaves_each_class_as_it_was(draws, unchanged, credit_score):
    shifted = draws[Scenario.PRIOR]
    before, after = (each.labels.value_counts(normalize=True) for each in (unchanged, shifted))
    assert before["Poor"] == pytest.approx(0.30, abs=0.03)
    assert after["Poor"] == pytest.approx(0.49, abs=0.03)
    assert after["Standard"] / after["Good"] == pytest.approx(before["Standard"] / before["Good"], rel=0.15)
    poor = [type(each)(each.features[each.labels == "Poor"], each.labels) for each in (unchanged, shifted)]
    frame = poor[0].features.assign(event_time=END)
    profile = build_profile(frame, ["Poor"] * len(frame), spec=credit_score)["features"]
    for name, entry in profile.items():
        assert psi(recorded_counts(entry), count_by_bin(poor[1].features[name], entry)) < 0.03, name


def test_broken_sends_thousands_and_nulls_of_the_same_people_with_the_same_truth(draws, unchanged):
    broken = draws[Scenario.BROKEN]
    columns = broken.features.columns.difference(list(PAY))
    pd.testing.assert_frame_equal(broken.features[columns], unchanged.features[columns])
    pd.testing.assert_series_equal(broken.labels, unchanged.labels)
    pd.testing.assert_series_equal(broken.features["annual_income"] * 1000, unchanged.features["annual_income"])
    assert broken.features["monthly_inhand_salary"].isna().all()


@pytest.mark.parametrize("scenario", Scenario)
@pytest.mark.parametrize("model", LEVERS)
def test_every_row_keeps_the_rules_of_the_model_file_even_if_the_source_is_broken(model, scenario):
    spec = find_spec(ROOT / "models", model)
    features = traffic(model, scenario=scenario, end=END, rows=1_000, seed=SEED).features
    frame = features.assign(**{spec.entity: [str(n) for n in range(len(features))]})
    frame = frame.assign(**{spec.source.event_time: END}) if spec.source.event_time else frame
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    columns = Columns.of(list(frame.columns), spec=spec, source="scenario")
    assert check(rows, spec=spec, columns=columns, lines=range(2, 2 + rows.num_rows)).rejects == []


@pytest.mark.parametrize("model", LEVERS)
def test_in_every_world_a_scenario_changes_its_own_part_and_no_other(model):
    draws = draws_for(model)
    plain, levers = draws[Scenario.NONE], LEVERS[model]
    touched = {
        Scenario.COVARIATE: set(levers.rising),
        Scenario.CONCEPT: set(),
        Scenario.BROKEN: {*levers.rescaled, *levers.silent},
    }
    for scenario, expected in touched.items():
        changed = draws[scenario].features
        assert {name for name in changed if not changed[name].equals(plain.features[name])} == expected, scenario
    assert draws[Scenario.BROKEN].labels.equals(plain.labels)
    assert not draws[Scenario.CONCEPT].labels.equals(plain.labels)
    passing = [levers.share(draws[each].labels).mean() for each in (Scenario.NONE, Scenario.PRIOR)]
    assert passing[1] > passing[0] + 0.05


def test_the_error_for_a_model_without_scenarios_names_the_models_that_have_them():
    with pytest.raises(NotFound, match=", ".join(LEVERS)):
        traffic("other", scenario=Scenario.NONE, end=END, rows=1, seed=1)
