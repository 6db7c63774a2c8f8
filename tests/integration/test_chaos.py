"""The short faults of `make chaos`: every answered request is logged exactly once."""

import pytest

from tests.chaos.faults import FAULTS, run_fault
from tests.chaos.world import run_chaos_stack

SHORT_FAULTS = [fault for fault in FAULTS if fault.short_seconds]


@pytest.fixture(scope="module")
def chaos_stack():
    with run_chaos_stack(is_short=True) as stack:
        yield stack


@pytest.mark.parametrize("fault", SHORT_FAULTS, ids=lambda fault: fault.name)
def test_every_answered_request_is_logged_once_and_requests_fail_only_on_killed_workers(chaos_stack, fault):
    account = run_fault(chaos_stack, fault, seconds=fault.short_seconds)
    assert account.met, account
    assert account.requests > 200
