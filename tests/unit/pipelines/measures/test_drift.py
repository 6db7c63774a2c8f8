"""Drift of a window: its formulas agree with scipy, unchanged features do not drift, and changed features do."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from pipelines.artifact.profile import build_profile, count_by_bin
from pipelines.measures.drift import PREDICTION, Difference, benjamini_hochberg, measure_drift, p_value, worst_first
from pipelines.spec import Drift, ModelSpec

POLICY = Drift()
FEATURES = 22
ROWS = 500  # of a window, the default minimum
SPEC = ModelSpec.parse(
    {
        "name": "shops",
        "task": "regression",
        "entity": "shop",
        "source": {"event_time": "day"},
        "label": {"column": "sales"},
        "features": {
            "columns": {f"f{i}": {"type": "numeric" if i % 3 else "categorical"} for i in range(FEATURES)},
        },
    },
    file="shops.yaml",
)
COUNTS = st.lists(st.integers(0, 5000), min_size=2, max_size=15)
PAIRS = st.integers(2, 15).flatmap(
    lambda bins: st.tuples(*[st.lists(st.integers(0, 5000), min_size=bins, max_size=bins)] * 2)
)


def features(rows: int, seed: int, *, shift: float = 0.0, days: int = 30, day_effect: float = 0.0) -> pd.DataFrame:
    """Random features over `days` days.

    shift: the shift of the feature `f1`, in standard deviations.
    day_effect: the standard deviation of a random offset per day and feature.
    """
    random = np.random.default_rng(seed)
    day = np.arange(rows) * days // rows
    offsets = random.normal(0, day_effect, (days, FEATURES))[day] if day_effect else np.zeros((rows, FEATURES))
    numbers = random.normal(size=(rows, FEATURES)) + offsets
    numbers[:, 1] += shift
    names = np.array(["a", "b", "c", "d"], dtype=object)
    columns = {
        f"f{i}": numbers[:, i] if i % 3 else names[np.digitize(numbers[:, i], [-1.0, 0.3, 1.2])]
        for i in range(FEATURES)
    }
    frame = pd.DataFrame(columns).mask(random.random((rows, FEATURES)) < 0.02)
    return frame.assign(event_time=np.datetime64("2026-01-01", "us") + day * np.timedelta64(1, "D"))


def compare_window(profile: dict[str, Any], rows: pd.DataFrame) -> dict[str, Difference]:
    """The differences between a window with `rows` and the profile."""
    window_counts = {name: count_by_bin(rows[name], entry) for name, entry in profile["features"].items()}
    window_counts[PREDICTION] = count_by_bin(pd.Series(np.arange(float(len(rows)))), profile["prediction"])
    return measure_drift(profile, window_counts, policy=POLICY)


def profile_of(frame: pd.DataFrame) -> dict[str, Any]:
    return build_profile(frame, list(np.arange(float(len(frame))) * ROWS / len(frame)), spec=SPEC)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_false_discovery_rates_equal_those_of_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(false_discovery_control(p_values, method="bh").tolist())


@given(PAIRS)
def test_a_p_value_is_a_probability_and_does_not_depend_on_the_order_of_the_samples(
    pair: tuple[list[int], list[int]],
) -> None:
    sample, other_sample = (np.array(counts) for counts in pair)
    assert 0 <= p_value(sample, other_sample) <= 1
    assert p_value(sample, other_sample) == pytest.approx(p_value(other_sample, sample))


@given(COUNTS)
def test_two_equal_samples_have_a_p_value_of_one(sample: list[int]) -> None:
    assert p_value(np.array(sample), np.array(sample)) == pytest.approx(1.0)


@given(PAIRS, st.randoms())
def test_a_p_value_does_not_depend_on_the_order_of_the_bins(pair: tuple[list[int], list[int]], random: Any) -> None:
    sample, other_sample = (np.array(counts) for counts in pair)
    order = list(range(len(sample)))
    random.shuffle(order)
    assert p_value(sample[order], other_sample[order]) == pytest.approx(p_value(sample, other_sample))


def test_p_values_of_samples_from_one_distribution_are_evenly_distributed() -> None:
    probabilities = [0.5, 0.3, 0.15, 0.04, 0.009, 0.001]
    random = np.random.default_rng(1)
    p_values = [
        p_value(random.multinomial(20_000, probabilities), random.multinomial(ROWS, probabilities)) for _ in range(2000)
    ]
    for level in (0.01, 0.05, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=4 * np.sqrt(level / 2000))


@pytest.mark.parametrize("day_effect", [0.0, 0.3])
def test_unchanged_features_raise_no_alarm(day_effect: float) -> None:
    """Nine windows of 500 rows follow each of ten training periods. Never do two of three windows drift."""
    alarms = 0
    for seed in range(10):
        profile = profile_of(features(30 * 600, seed, day_effect=day_effect))
        later_rows = features(9 * ROWS, 1000 + seed, days=9, day_effect=day_effect)
        windows = [later_rows.iloc[start : start + ROWS] for start in range(0, 9 * ROWS, ROWS)]
        drifted = [bool(worst_first(compare_window(profile, window))) for window in windows]
        alarms += any(drifted[k] and sum(drifted[max(0, k - 2) : k + 1]) >= 2 for k in range(9))
    assert alarms == 0


def test_a_shift_by_half_a_standard_deviation_is_found_in_nearly_all_small_windows() -> None:
    profile = profile_of(features(30_000, 1))
    drifted = [worst_first(compare_window(profile, features(ROWS, seed, shift=0.5))) for seed in range(50)]
    assert sum("f1" in names for names in drifted) >= 48
    assert sum(names == ["f1"] for names in drifted) >= 45


def test_a_shift_below_the_limit_is_not_drift_even_with_many_rows() -> None:
    differences = compare_window(profile_of(features(50_000, 1)), features(50_000, 2, shift=0.15))
    assert differences["f1"].q_value < 1e-9
    assert not differences["f1"].drifted


def test_an_unstable_training_period_raises_the_limit() -> None:
    stable, unstable = profile_of(features(45_000, 1)), profile_of(features(45_000, 1, day_effect=0.4))
    shifted = features(5000, 2, shift=0.5)
    assert compare_window(stable, shifted)["f1"].drifted
    assert compare_window(unstable, shifted)["f1"].limit > 3 * POLICY.psi / 2
    assert not compare_window(unstable, shifted)["f1"].drifted


def test_a_window_that_drifts_from_the_profile_does_not_drift_from_training_rows_with_the_same_shift() -> None:
    profile = profile_of(features(30_000, 1))
    current, newest = (
        {"f1": count_by_bin(features(2000, seed, shift=0.8)["f1"], profile["features"]["f1"])} for seed in (2, 3)
    )
    assert measure_drift(profile, current, policy=POLICY)["f1"].drifted
    assert not measure_drift(profile, current, policy=POLICY, base=newest)["f1"].drifted


def test_a_feature_without_values_in_the_window_drifts() -> None:
    profile = profile_of(features(30_000, 1))
    frame = features(ROWS, 2).assign(f3=None)
    assert worst_first(compare_window(profile, frame)) == ["f3"]


def test_an_empty_window_does_not_drift() -> None:
    assert not any(
        difference.drifted
        for difference in compare_window(profile_of(features(3000, 1)), features(ROWS, 2).iloc[:0]).values()
    )
