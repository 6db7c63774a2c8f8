"""Producing items ahead: the same items in the same order, errors at their place, and no more than asked for."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.ahead import ahead, map_ahead


@given(st.lists(st.one_of(st.none(), st.integers())), st.integers(1, 4))
def test_items_come_as_they_are_and_in_their_order(items: list[int | None], threads: int) -> None:
    assert list(ahead(iter(items))) == items
    assert list(map_ahead(lambda item: (item,), iter(items), threads=threads)) == [(item,) for item in items]


def failing_at(place: int) -> Iterator[int]:
    for number in range(10):
        if number == place:
            raise ValueError(number)
        yield number


def test_an_error_comes_where_its_item_would_have_come() -> None:
    taken: list[int] = []
    with pytest.raises(ValueError, match="3"):
        taken.extend(ahead(failing_at(3)))
    assert taken == [0, 1, 2]


def test_no_more_than_one_item_is_made_ahead_and_none_after_the_end() -> None:
    produced: list[int] = []

    def produce() -> Iterator[int]:
        for number in range(100):
            produced.append(number)
            yield number

    with closing(ahead(produce())) as items:
        assert next(items) == 0
    assert produced in ([0], [0, 1])


def test_items_are_made_in_other_threads_while_one_is_used() -> None:
    barrier = threading.Barrier(2, timeout=20)

    def make(item: int) -> int:
        barrier.wait()  # passes only if two threads wait at once
        return item

    assert list(map_ahead(make, iter(range(6)), threads=2)) == list(range(6))
