"""Patience lasts as long as a sign changes, and no longer. Time passes only in the pauses of the tested code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import GaveUp
from utils.patience import LOOKS, Patience

SECONDS = st.integers(1, 300)
EVERY = st.floats(0.05, 5)


class Time:
    """A clock, and the pause that moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def sign_at(time: Time, moments: list[float]) -> int:
    """A sign that changes at each of `moments`."""
    return sum(moment <= time.now for moment in moments)


@given(SECONDS, st.lists(st.floats(0, 1), max_size=20), st.floats(0, 0.99), EVERY)
def test_it_never_gives_up_while_something_moves_in_time_however_long_that_takes(
    seconds: int, gaps: list[float], rest: float, every: float
) -> None:
    time, moments = Time(), [0.0]
    for gap in gaps:  # at most 1, a share of the patience
        moments.append(moments[-1] + gap * seconds)
    arrival = moments[-1] + rest * seconds
    patience = Patience("it", lambda: sign_at(time, moments), seconds=seconds, clock=time.clock, pause=time.pause)
    assert patience.until(lambda: time.now >= arrival and "found", every=every) == "found"


@given(SECONDS, st.floats(0, 1_000), EVERY)
def test_it_always_gives_up_once_nothing_moves_and_not_before(seconds: int, last: float, every: float) -> None:
    time = Time()
    # The sign changes all the time up to `last`.
    patience = Patience("it", lambda: min(time.now, last), seconds=seconds, clock=time.clock, pause=time.pause)
    with pytest.raises(GaveUp):
        patience.until(lambda: False, every=every)
    assert last + seconds <= time.now + every
    assert time.now <= last + seconds * (1 + 1 / LOOKS) + 2 * every


@given(st.integers(1, 1_000), EVERY)
def test_endless_movement_is_given_up_after_the_longest_time(longest: int, every: float) -> None:
    time = Time()
    patience = Patience("it", lambda: time.now, seconds=300, longest=longest, clock=time.clock, pause=time.pause)
    with pytest.raises(GaveUp):
        patience.until(lambda: False, every=every)
    assert longest <= time.now <= longest + every


def test_the_error_has_the_subject_the_durations_and_the_last_state() -> None:
    time = Time()
    patience = Patience(
        "the end of churn_training",
        lambda: min(time.now, 90),
        seconds=60,
        state=lambda: "tasks: 2 waiting\nthe scheduler is away",
        clock=time.clock,
        pause=time.pause,
    )
    with pytest.raises(GaveUp) as error:
        patience.until(lambda: None, every=1)
    assert str(error.value) == (
        "gave up on the end of churn_training after 150 s, the last 60 s without any progress; "
        "last seen: tasks: 2 waiting | the scheduler is away"
    )


def test_a_value_that_exists_already_is_returned_without_a_pause() -> None:
    time = Time()
    assert Patience("it", lambda: 0, seconds=1, clock=time.clock, pause=time.pause).until(lambda: 7) == 7
    assert time.now == 0


def test_an_error_of_the_look_ends_the_wait() -> None:
    def look() -> bool:
        raise ProcessLookupError

    with pytest.raises(ProcessLookupError):
        Patience("it", lambda: 0, seconds=1).until(look)


def test_a_costly_sign_is_looked_at_a_few_times_while_patience_lasts() -> None:
    time, looks = Time(), []
    patience = Patience("it", lambda: looks.append(1), seconds=60, clock=time.clock, pause=time.pause)
    with pytest.raises(GaveUp):
        patience.until(lambda: False)
    assert len(looks) <= LOOKS + 3
