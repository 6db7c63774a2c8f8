"""The look-backs from which the search chooses, and the steps of a replay."""

from datetime import datetime, timedelta

import pandas as pd
import pytest

from pipelines.spec import ModelSpec
from pipelines.training.lookback import look_back_choices, newest_rows
from pipelines.training.split import Split, split_rows

UNTIL = pd.Timestamp("2026-06-01")


def spec(look_back: str = "auto") -> ModelSpec:
    return ModelSpec.parse(
        {
            "name": "shops",
            "task": "binary",
            "entity": "shop",
            "source": {"event_time": "day"},
            "label": {"column": "closed", "classes": ["open", "closed"]},
            "features": {"columns": {"visits": {"type": "numeric"}}},
            "training": {"window": look_back, "split": {"by": "time", "validation": "10d", "test": "10d"}},
        },
        file="shops.yaml",
    )


def rows(days: int) -> pd.DataFrame:
    """Two rows per day, one of each class, on `UNTIL` and the days before it."""
    times = [UNTIL - timedelta(days=number // 2) for number in range(2 * days)]
    labels = ["open", "closed"] * days
    return pd.DataFrame({"entity_id": [f"s{i}" for i in range(2 * days)], "event_time": times, "closed": labels})


def parts(frame: pd.DataFrame) -> Split:
    return split_rows(frame, spec=spec(), until=UNTIL)


def test_the_choices_are_all_rows_and_each_look_back_that_leaves_rows_out() -> None:
    assert look_back_choices(parts(rows(130)), spec=spec()) == ["all", "90d", "60d", "30d"]
    assert look_back_choices(parts(rows(45)), spec=spec()) == ["all"]


def test_a_look_back_without_rows_of_a_class_is_not_a_choice() -> None:
    frame = rows(130)
    is_late = frame["event_time"] > UNTIL - timedelta(days=55)
    assert look_back_choices(parts(frame[~is_late | (frame["closed"] == "open")]), spec=spec()) == ["all", "90d", "60d"]


def test_there_are_no_choices_if_the_model_file_sets_the_look_back() -> None:
    assert look_back_choices(parts(rows(130)), spec=spec("100d")) == []


def test_a_look_back_is_counted_from_the_newest_row() -> None:
    newest = newest_rows(rows(130), "30d")
    assert len(newest) == 60
    assert newest["event_time"].max() == UNTIL
    assert newest_rows(newest, "30d").equals(newest)


@pytest.mark.parametrize("look_back", [None, "all"])
def test_all_rows_are_kept_without_a_look_back(look_back: str | None) -> None:
    assert len(newest_rows(rows(130), look_back)) == 260


def test_no_rows_stay_no_rows() -> None:
    assert newest_rows(rows(130).head(0), "30d").empty


def test_the_monthly_steps_of_a_replay_are_on_the_same_day_or_on_the_last_day_of_a_shorter_month() -> None:
    from pipelines.replay import step_times

    assert list(step_times(datetime(2026, 1, 31), datetime(2026, 5, 1), "1mo")) == [
        datetime(2026, 1, 31),
        datetime(2026, 2, 28),
        datetime(2026, 3, 31),
        datetime(2026, 4, 30),
    ]
    assert list(step_times(datetime(2026, 12, 1), datetime(2027, 2, 1), "1mo")) == [
        datetime(2026, 12, 1),
        datetime(2027, 1, 1),
    ]


def test_the_steps_of_a_replay_end_before_its_end() -> None:
    from pipelines.replay import step_times

    assert len(list(step_times(datetime(2026, 1, 1), datetime(2026, 1, 15), "7d"))) == 2
