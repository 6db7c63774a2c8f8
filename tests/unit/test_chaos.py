"""The accounts of `make chaos`: how a request without a good answer is counted."""

from pathlib import Path
from typing import Any, cast

import pytest

from tests.chaos.accounts import Account, Kill, Period, Run, _classify
from tests.chaos.proxy import build_configuration
from tests.chaos.traffic import POISON, Request


def run(**periods: Any) -> Run:
    nothing = cast(Any, None)
    return Run(nothing, nothing, **periods)


OUTAGE, DOWNTIME = run(outages=[Period(10, 20)]), run(downtimes=[Period(10, 20)])
ONE_KILLED, ALL_KILLED = run(kills=[Kill(15, frozenset({7}))]), run(kills=[Kill(15)])


@pytest.mark.parametrize(
    ("attempt", "fault", "kind"),
    [
        (Request("e", 9, 11, status=503, retry_after=True), OUTAGE, "unavailable"),
        (Request("e", 9, 11, status=503), OUTAGE, "failed"),  # without Retry-After
        (Request("e", 21, 22, status=503, retry_after=True), OUTAGE, "failed"),
        (Request("e", 12, 12, problem="refused"), DOWNTIME, "refused"),
        (Request("e", 1, 2, problem="refused"), DOWNTIME, "failed"),
        (Request("e", 12, 13, problem="lost"), DOWNTIME, "failed"),
        (Request("e", 14, 16, port=7, connected=3, problem="lost"), ONE_KILLED, "in flight"),
        (Request("e", 14, 16, port=8, connected=3, problem="lost"), ONE_KILLED, "failed"),
        # A new connection with the port of a killed one.
        (Request("e", 16, 17, port=7, connected=16, problem="lost"), ONE_KILLED, "failed"),
        (Request("e", 14, 16, port=8, connected=3, problem="lost"), ALL_KILLED, "in flight"),
        (Request("e", 14, 34, port=7, connected=3, problem="silent"), ALL_KILLED, "failed"),
        (Request(f"e{POISON}1", 1, 2, status=500), OUTAGE, "poisoned"),
        (Request(f"e{POISON}1", 1, 2, status=503), OUTAGE, "failed"),
        (Request("e", 1, 2, status=500), OUTAGE, "failed"),
    ],
)
def test_a_request_without_an_answer_is_excused_only_by_the_fault_of_that_time(
    attempt: Request, fault: Run, kind: str
) -> None:
    assert _classify(attempt, fault) == kind


@pytest.mark.parametrize("trouble", [{"lost": 1}, {"twice": 1}, {"failed": 2}, {"problem": "x"}, {"skipped": "x"}])
def test_one_request_or_a_fault_that_went_wrong_misses_the_goal(trouble: dict[str, Any]) -> None:
    assert Account("f", requests=100, failed=1, in_flight=1, unavailable=9, refused=9, poisoned=9, dead=9).met
    assert not Account("f", **({"requests": 100, "failed": 1, "in_flight": 1} | trouble)).met


def test_chaos_uses_the_configuration_of_the_proxy_in_the_containers() -> None:
    content = build_configuration([1, 2], 3, Path("/somewhere"))
    assert "server 127.0.0.1:1 max_fails=0; server 127.0.0.1:2 max_fails=0;" in content
    assert "listen 127.0.0.1:3;" in content
    assert "proxy_next_upstream error timeout http_503 non_idempotent;" in content
    assert "resolver" not in content
