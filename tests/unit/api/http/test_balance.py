"""Whose turn it is to take a connection, as two workers of one service see it."""

import os
from collections.abc import Iterator

import pytest

from api.http import balance
from api.http.balance import ConnectionCounts


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    made: dict[str, str] = {}
    balance.offer(made)
    yield made
    os.close(int(made[balance.VARIABLE]))


@pytest.mark.parametrize(
    ("mine", "its", "turn"), [(0, 0, False), (1, 0, False), (2, 0, True), (31, 15, False), (32, 15, True)]
)
def test_who_holds_twice_as_many_leaves_the_next_to_the_other(environment, mine, its, turn):
    one, other = ConnectionCounts(environment, 1), ConnectionCounts(environment, 2)
    one.put(mine)
    other.put(its)
    assert (one.is_others_turn(), other.is_others_turn()) == (turn, False)


def test_a_worker_that_has_not_started_or_has_left_gets_no_turn(environment):
    one, other = ConnectionCounts(environment, 1), ConnectionCounts(environment, 2)
    one.put(9)
    assert not one.is_others_turn()
    other.put(0)
    assert one.is_others_turn()
    other.leave()
    assert not one.is_others_turn()


def test_who_comes_in_a_workers_place_does_not_inherit_its_connections(environment):
    one, killed = ConnectionCounts(environment, 1), ConnectionCounts(environment, 2)
    one.put(9)
    killed.put(3)
    assert one.is_others_turn()
    ConnectionCounts(environment, 2)
    assert not one.is_others_turn()


@pytest.mark.parametrize(("known", "worker"), [(False, 1), (True, None), (True, balance.PLACES)])
def test_without_a_place_a_worker_has_no_others(environment, known, worker):
    given = environment if known else {}
    ConnectionCounts(environment, 2).put(0)
    alone = ConnectionCounts(given, worker)
    alone.put(100)
    assert not alone.is_others_turn()
    assert not ConnectionCounts(environment, 2).is_others_turn()
