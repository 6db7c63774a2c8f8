"""Drift of a window: its formulas, no alarm without a change, and detection of the changes that matter."""

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
ROWS = 500  # rows of a window, the minimum
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


def world(rows: int, seed: int, *, shift: float = 0.0, days: int = 30, day_effect: float = 0.0) -> pd.DataFrame:
    """Features without drift, except a shift of the first numeric one by `shift` standard deviations.

    day_effect: standard deviation of a random offset of each day and feature.
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


def window(profile: dict[str, Any], rows: pd.DataFrame) -> dict[str, Difference]:
    window_counts = {name: count_by_bin(rows[name], entry) for name, entry in profile["features"].items()}
    window_counts[PREDICTION] = count_by_bin(pd.Series(np.arange(float(len(rows)))), profile["prediction"])
    return measure_drift(profile, window_counts, policy=POLICY)


def profile_of(frame: pd.DataFrame) -> dict[str, Any]:
    return build_profile(frame, list(np.arange(float(len(frame))) * ROWS / len(frame)), spec=SPEC)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_false_discovery_rate_is_scipys(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(false_discovery_control(p_values, method="bh").tolist())


@given(PAIRS)
def test_a_p_value_is_a_chance_and_does_not_depend_on_the_order_of_the_samples(
    pair: tuple[list[int], list[int]],
) -> None:
    one, other = (np.array(sample) for sample in pair)
    assert 0 <= p_value(one, other) <= 1
    assert p_value(one, other) == pytest.approx(p_value(other, one))


@given(COUNTS)
def test_a_sample_never_drifts_from_itself(sample: list[int]) -> None:
    assert p_value(np.array(sample), np.array(sample)) == pytest.approx(1.0)


@given(PAIRS, st.randoms())
def test_the_order_of_the_bins_does_not_matter(pair: tuple[list[int], list[int]], random: Any) -> None:
    one, other = (np.array(sample) for sample in pair)
    order = list(range(len(one)))
    random.shuffle(order)
    assert p_value(one[order], other[order]) == pytest.approx(p_value(one, other))


def test_p_values_of_unchanged_samples_are_spread_evenly() -> None:
    shares = [0.5, 0.3, 0.15, 0.04, 0.009, 0.001]
    random = np.random.default_rng(1)
    p_values = [p_value(random.multinomial(20_000, shares), random.multinomial(ROWS, shares)) for _ in range(2000)]
    for level in (0.01, 0.05, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=4 * np.sqrt(level / 2000))


@pytest.mark.parametrize("day_effect", [0.0, 0.3])
def test_without_drift_there_is_no_alarm(day_effect: float) -> None:
    """No two of three windows drift, over ten training periods with 9 windows of 500 rows and 22 features each."""
    alarms = 0
    for seed in range(10):
        profile = profile_of(world(30 * 600, seed, day_effect=day_effect))
        later = world(9 * ROWS, 1000 + seed, days=9, day_effect=day_effect)
        drifted = [
            any(each.drifted for each in window(profile, later.iloc[k * ROWS : (k + 1) * ROWS]).values())
            for k in range(9)
        ]
        alarms += any(drifted[k] and sum(drifted[max(0, k - 2) : k + 1]) >= 2 for k in range(9))
    assert alarms == 0


def test_a_shift_by_half_a_standard_deviation_is_found_and_named_in_small_windows_too() -> None:
    profile = profile_of(world(30_000, 1))
    differences = [window(profile, world(ROWS, seed, shift=0.5)) for seed in range(50)]
    assert sum("f1" in worst_first(each) for each in differences) >= 48
    assert sum(worst_first(each) == ["f1"] for each in differences) >= 45


def test_a_shift_below_the_limit_is_not_drift_even_with_many_rows() -> None:
    differences = window(profile_of(world(50_000, 1)), world(50_000, 2, shift=0.15))
    assert differences["f1"].q_value < 1e-9
    assert not differences["f1"].drifted


def test_a_restless_training_period_raises_the_limit() -> None:
    calm, restless = profile_of(world(45_000, 1)), profile_of(world(45_000, 1, day_effect=0.4))
    shifted = world(5000, 2, shift=0.5)
    assert window(calm, shifted)["f1"].drifted
    assert window(restless, shifted)["f1"].limit > 3 * POLICY.psi / 2
    assert not window(restless, shifted)["f1"].drifted


def test_drift_that_the_newest_training_rows_share_is_no_drift_against_them() -> None:
    profile = profile_of(world(30_000, 1))
    current, newest = (
        {"f1": count_by_bin(world(2000, seed, shift=0.8)["f1"], profile["features"]["f1"])} for seed in (2, 3)
    )
    assert measure_drift(profile, current, policy=POLICY)["f1"].drifted
    assert not measure_drift(profile, current, policy=POLICY, base=newest)["f1"].drifted


def test_a_feature_that_vanished_drifts() -> None:
    profile = profile_of(world(30_000, 1))
    frame = world(ROWS, 2).assign(f3=None)
    assert worst_first(window(profile, frame)) == ["f3"]


def test_an_empty_window_does_not_drift() -> None:
    assert not any(each.drifted for each in window(profile_of(world(3000, 1)), world(ROWS, 2).iloc[:0]).values())
