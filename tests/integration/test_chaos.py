"""The short faults of `make chaos`. Every answered request is logged exactly once, and no request fails."""

import pytest

from tests.chaos.faults import FAULTS, break_it
from tests.chaos.world import make_world

SHORT = [fault for fault in FAULTS if fault.short]


@pytest.fixture(scope="module")
def world():
    with make_world(short=True) as world_under_faults:
        yield world_under_faults


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
def test_every_answered_request_is_logged_once_and_none_fails_but_on_a_killed_worker(world, fault):
    account = break_it(world, fault, seconds=fault.short)
    assert account.met, account
    assert account.requests > 200
