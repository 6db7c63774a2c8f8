"""The reference profile, and the stability index between samples and the profile."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from pipelines.artifact.profile import build_profile, count_by_bin, psi, recorded_counts
from pipelines.spec import ModelSpec

SPEC = ModelSpec.parse(
    {
        "name": "shops",
        "task": "regression",
        "entity": "shop",
        "source": {"event_time": "day"},
        "label": {"column": "sales"},
        "features": {
            "columns": {"visits": {"type": "numeric"}, "town": {"type": "categorical"}, "tags": {"type": "text"}},
        },
        "monitoring": {"window": "1d", "min_rows": 50},
    },
    file="shops.yaml",
)


def features(rows: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    """Random features over 30 days. `shift` moves the mean of `visits`, in standard deviations."""
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "event_time": [datetime(2026, 1, 1) + timedelta(days=int(day)) for day in np.arange(rows) * 30 // rows],
            "visits": np.where(generator.random(rows) < 0.05, np.nan, generator.normal(100 + 15 * shift, 15, rows)),
            "town": generator.choice(["Bern", "Basel", None], rows, p=[0.6, 0.3, 0.1]),
            "tags": generator.choice(["new, loud", "quiet", None], rows),
        }
    )


def test_the_profile_counts_every_row_in_one_bin() -> None:
    frame = features(3000, 1)
    profile = build_profile(frame, list(np.arange(3000.0)), spec=SPEC)
    for name, entry in {**profile["features"], "prediction": profile["prediction"]}.items():
        assert recorded_counts(entry).sum() == 3000, name
    for name, entry in profile["features"].items():
        assert (count_by_bin(frame[name], entry) == recorded_counts(entry)).all(), name


def test_unseen_categories_and_values_outside_the_training_range_are_counted() -> None:
    frame = features(3000, 1)
    profile = build_profile(frame, [0.0] * 3000, spec=SPEC)["features"]
    towns = count_by_bin(pd.Series(["Bern", "Genf", None]), profile["town"])
    assert towns.tolist() == [1, 0, 1, 1]
    visits = count_by_bin(pd.Series([-1e9, 1e9, np.nan]), profile["visits"])
    assert (visits[0], visits[-2], visits[-1]) == (1, 1, 1)


def test_two_samples_of_one_distribution_have_a_stability_index_near_zero() -> None:
    indices = [psi(*np.random.default_rng(seed).multinomial(500, [0.1] * 10, size=2)) for seed in range(200)]
    assert np.mean(indices) < 0.01  # 0.036 without the correction


@pytest.mark.parametrize(("shift", "low", "high"), [(0.1, 0.003, 0.02), (0.25, 0.04, 0.08), (0.5, 0.19, 0.27)])
def test_a_shift_of_the_mean_has_the_expected_stability_index(shift: float, low: float, high: float) -> None:
    """The bounds contain the exact index of two normal distributions over ten bins of equal probability."""
    profile = build_profile(features(20_000, 1), [0.0] * 20_000, spec=SPEC)["features"]["visits"]
    assert low < psi(recorded_counts(profile), count_by_bin(features(20_000, 2, shift)["visits"], profile)) < high


def test_psi_95_is_small_for_a_stable_training_period_and_large_for_an_unstable_period() -> None:
    stable, unstable = features(6000, 1), features(6000, 1)
    unstable["visits"] += np.where(unstable["event_time"].dt.day % 2, 10, -10)
    stable_psi, unstable_psi = (
        build_profile(frame, [0.0] * 6000, spec=SPEC)["features"]["visits"]["psi_95"] for frame in (stable, unstable)
    )
    assert stable_psi < 0.1 < unstable_psi


def test_a_profile_of_rows_with_one_event_time_has_no_windows() -> None:
    frame = features(100, 1).assign(event_time=datetime(1970, 1, 1))
    profile = build_profile(frame, [0.0] * 100, spec=SPEC)
    assert profile["windows"] == 0
    assert profile["features"]["visits"]["psi_95"] == 0
