"""What each scenario changes in the example data, and what it leaves unchanged."""

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
from stack.example_data.scenarios import CREDIT_EFFECTS, EFFECTS, draw_people
from utils.errors import NotFound
from utils.version import ROOT

END = datetime(2026, 11, 21, 9, 30)
ROWS, SEED = 5_000, 3
INCOMES = set(CREDIT_EFFECTS.rising)
BROKEN_COLUMNS = {"annual_income", "monthly_inhand_salary"}


@cache
def draw_all_scenarios(model):
    return {name: draw_people(model, scenario=name, end=END, rows=ROWS, seed=SEED) for name in Scenario}


@pytest.fixture
def people_by_scenario():
    return draw_all_scenarios("credit_score")


@pytest.fixture
def unchanged(people_by_scenario):
    return people_by_scenario[Scenario.NONE]


def stability_indices(unchanged, changed, spec):
    """The population stability index of each feature of `changed`, with `unchanged` as the reference."""
    frame = unchanged.features.assign(event_time=END)
    profile = build_profile(frame, unchanged.labels.tolist(), spec=spec)["features"]
    return {
        name: psi(recorded_counts(profile[name]), count_by_bin(changed.features[name], profile[name]))
        for name in profile
    }


def test_none_draws_the_same_people_again_and_other_seeds_draw_similar_people(unchanged, credit_score):
    repeated = draw_people("credit_score", scenario=Scenario.NONE, end=END, rows=ROWS, seed=SEED)
    pd.testing.assert_frame_equal(unchanged.features, repeated.features)
    pd.testing.assert_series_equal(unchanged.labels, repeated.labels)
    other_people = draw_people("credit_score", scenario=Scenario.NONE, end=END, rows=ROWS, seed=SEED + 1)
    assert max(stability_indices(unchanged, other_people, credit_score).values()) < 0.02
    shares = [people.labels.value_counts(normalize=True) for people in (unchanged, other_people)]
    assert abs(shares[0] - shares[1]).max() < 0.03


def test_a_smaller_draw_is_the_start_of_a_larger_draw_and_another_seed_draws_other_people(unchanged):
    few = draw_people("credit_score", scenario=Scenario.NONE, end=END, rows=40, seed=SEED)
    pd.testing.assert_frame_equal(few.features, unchanged.features.head(40))
    other_people = draw_people("credit_score", scenario=Scenario.NONE, end=END, rows=40, seed=SEED + 1)
    assert not few.features.equals(other_people.features)


def test_covariate_raises_only_incomes_by_half_a_standard_deviation(people_by_scenario, unchanged, credit_score):
    raised = people_by_scenario[Scenario.COVARIATE]
    columns = raised.features.columns.difference(list(INCOMES))
    pd.testing.assert_frame_equal(raised.features[columns], unchanged.features[columns])
    pd.testing.assert_series_equal(raised.labels, unchanged.labels)
    before, after = (np.log(people.features["annual_income"]) for people in (unchanged, raised))
    assert (after.mean() - before.mean()) / before.std() == pytest.approx(0.5, abs=0.05)
    changed_features = {
        name for name, index in stability_indices(unchanged, raised, credit_score).items() if index > 0.02
    }
    assert changed_features == INCOMES


def test_concept_changes_labels_and_no_feature(people_by_scenario, unchanged):
    changed = people_by_scenario[Scenario.CONCEPT]
    pd.testing.assert_frame_equal(changed.features, unchanged.features)
    assert 0.1 < (changed.labels != unchanged.labels).mean() < 0.3
    shares = [people.labels.value_counts(normalize=True) for people in (unchanged, changed)]
    assert abs(shares[0] - shares[1]).max() < 0.05  # the shares of the classes hardly change

    def correlation(labels, feature):
        return (labels == "Poor").astype(float).corr(unchanged.features[feature], method="spearman")

    assert correlation(changed.labels, "outstanding_debt") > correlation(unchanged.labels, "outstanding_debt") + 0.03
    assert correlation(changed.labels, "interest_rate") < correlation(unchanged.labels, "interest_rate") - 0.03


def test_prior_makes_one_class_more_frequent_and_keeps_its_features(people_by_scenario, unchanged, credit_score):
    shifted = people_by_scenario[Scenario.PRIOR]
    before, after = (people.labels.value_counts(normalize=True) for people in (unchanged, shifted))
    assert before["Poor"] == pytest.approx(0.30, abs=0.03)
    assert after["Poor"] == pytest.approx(0.49, abs=0.03)
    assert after["Standard"] / after["Good"] == pytest.approx(before["Standard"] / before["Good"], rel=0.15)
    poor_before, poor_after = (people.features[people.labels == "Poor"] for people in (unchanged, shifted))
    frame = poor_before.assign(event_time=END)
    profile = build_profile(frame, ["Poor"] * len(frame), spec=credit_score)["features"]
    for name, entry in profile.items():
        assert psi(recorded_counts(entry), count_by_bin(poor_after[name], entry)) < 0.03, name


def test_broken_sends_incomes_in_thousands_and_no_salaries_and_keeps_the_labels(people_by_scenario, unchanged):
    broken = people_by_scenario[Scenario.BROKEN]
    columns = broken.features.columns.difference(list(BROKEN_COLUMNS))
    pd.testing.assert_frame_equal(broken.features[columns], unchanged.features[columns])
    pd.testing.assert_series_equal(broken.labels, unchanged.labels)
    pd.testing.assert_series_equal(broken.features["annual_income"] * 1000, unchanged.features["annual_income"])
    assert broken.features["monthly_inhand_salary"].isna().all()


@pytest.mark.parametrize("scenario", Scenario)
@pytest.mark.parametrize("model", EFFECTS)
def test_every_row_passes_the_checks_of_the_model_file_in_every_scenario(model, scenario):
    spec = find_spec(ROOT / "models", model)
    features = draw_people(model, scenario=scenario, end=END, rows=1_000, seed=SEED).features
    frame = features.assign(**{spec.entity: [str(number) for number in range(len(features))]})
    frame = frame.assign(**{spec.source.event_time: END}) if spec.source.event_time else frame
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    columns = Columns.of(list(frame.columns), spec=spec, source="scenario")
    assert check(rows, spec=spec, columns=columns, lines=range(2, 2 + rows.num_rows)).rejects == []


@pytest.mark.parametrize("model", EFFECTS)
def test_each_scenario_changes_only_its_own_columns_and_labels(model):
    people_by_scenario = draw_all_scenarios(model)
    unchanged, effects = people_by_scenario[Scenario.NONE], EFFECTS[model]
    changed_columns = {
        Scenario.COVARIATE: set(effects.rising),
        Scenario.CONCEPT: set(),
        Scenario.BROKEN: {*effects.rescaled, *effects.emptied},
    }
    for scenario, expected in changed_columns.items():
        changed = people_by_scenario[scenario].features
        assert {name for name in changed if not changed[name].equals(unchanged.features[name])} == expected, scenario
    assert people_by_scenario[Scenario.BROKEN].labels.equals(unchanged.labels)
    assert not people_by_scenario[Scenario.CONCEPT].labels.equals(unchanged.labels)
    share_before, share_after = (
        effects.kept_share(people_by_scenario[name].labels).mean() for name in (Scenario.NONE, Scenario.PRIOR)
    )
    assert share_after > share_before + 0.05


def test_the_error_for_a_model_without_scenarios_names_the_models_that_have_them():
    with pytest.raises(NotFound, match=", ".join(EFFECTS)):
        draw_people("other", scenario=Scenario.NONE, end=END, rows=1, seed=1)
