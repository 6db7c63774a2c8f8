"""Whether a worker takes the next connection or leaves it to the other, for two workers of one service."""

import os
from collections.abc import Iterator

import pytest

from api.http import balance
from api.http.balance import ConnectionCounts


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    variables: dict[str, str] = {}
    balance.offer(variables)
    yield variables
    os.close(int(variables[balance.VARIABLE]))


@pytest.mark.parametrize(
    ("own", "others", "turn"), [(0, 0, False), (1, 0, False), (2, 0, True), (31, 15, False), (32, 15, True)]
)
def test_a_worker_with_twice_as_many_connections_leaves_the_next_to_the_other(environment, own, others, turn):
    one, other = ConnectionCounts(environment, 1), ConnectionCounts(environment, 2)
    one.put(own)
    other.put(others)
    assert (one.is_others_turn(), other.is_others_turn()) == (turn, False)


def test_a_worker_that_has_not_started_or_has_left_gets_no_turn(environment):
    one, other = ConnectionCounts(environment, 1), ConnectionCounts(environment, 2)
    one.put(9)
    assert not one.is_others_turn()
    other.put(0)
    assert one.is_others_turn()
    other.leave()
    assert not one.is_others_turn()


def test_a_new_worker_does_not_inherit_the_connections_of_the_one_before(environment):
    one, killed = ConnectionCounts(environment, 1), ConnectionCounts(environment, 2)
    one.put(9)
    killed.put(3)
    assert one.is_others_turn()
    ConnectionCounts(environment, 2)
    assert not one.is_others_turn()


@pytest.mark.parametrize(("offered", "worker"), [(False, 1), (True, None), (True, balance.PLACES)])
def test_a_worker_without_a_place_takes_every_connection(environment, offered, worker):
    variables = environment if offered else {}
    ConnectionCounts(environment, 2).put(0)
    alone = ConnectionCounts(variables, worker)
    alone.put(100)
    assert not alone.is_others_turn()
    assert not ConnectionCounts(environment, 2).is_others_turn()
