"""The accounts of `make chaos`: which column a request without an answer belongs to."""

from pathlib import Path
from typing import Any, cast

import pytest

from tests.chaos.accounts import Account, Killed, Period, Run, _kind
from tests.chaos.proxy import configuration
from tests.chaos.traffic import POISON, Asked


def run(**periods: Any) -> Run:
    nothing = cast(Any, None)
    return Run(nothing, nothing, **periods)


OUT, DOWN = run(both_out=[Period(10, 20)]), run(down=[Period(10, 20)])
ONE, ALL = run(killed=[Killed(15, frozenset({7}))]), run(killed=[Killed(15)])


@pytest.mark.parametrize(
    ("asked", "of", "kind"),
    [
        (Asked("e", 9, 11, status=503, retry_after=True), OUT, "unavailable"),
        (Asked("e", 9, 11, status=503), OUT, "failed"),  # nobody was told when to come back
        (Asked("e", 21, 22, status=503, retry_after=True), OUT, "failed"),
        (Asked("e", 12, 12, problem="refused"), DOWN, "refused"),
        (Asked("e", 1, 2, problem="refused"), DOWN, "failed"),
        (Asked("e", 12, 13, problem="lost"), DOWN, "failed"),
        (Asked("e", 14, 16, port=7, connected=3, problem="lost"), ONE, "in flight"),
        (Asked("e", 14, 16, port=8, connected=3, problem="lost"), ONE, "failed"),
        (Asked("e", 16, 17, port=7, connected=16, problem="lost"), ONE, "failed"),  # the port is somebody else's by now
        (Asked("e", 14, 16, port=8, connected=3, problem="lost"), ALL, "in flight"),
        (Asked("e", 14, 34, port=7, connected=3, problem="silent"), ALL, "failed"),
        (Asked(f"e{POISON}1", 1, 2, status=500), OUT, "poisoned"),
        (Asked(f"e{POISON}1", 1, 2, status=503), OUT, "failed"),
        (Asked("e", 1, 2, status=500), OUT, "failed"),
    ],
)
def test_a_request_without_an_answer_is_excused_only_by_what_was_broken_then(asked: Asked, of: Run, kind: str) -> None:
    assert _kind(asked, of) == kind


@pytest.mark.parametrize("trouble", [{"lost": 1}, {"twice": 1}, {"failed": 2}, {"problem": "x"}, {"skipped": "x"}])
def test_a_goal_is_missed_by_one_request_and_by_a_fault_that_did_not_go_as_it_should(trouble: dict[str, Any]) -> None:
    assert Account("f", requests=100, failed=1, in_flight=1, unavailable=9, refused=9, poisoned=9, dead=9).met
    assert not Account("f", **({"requests": 100, "failed": 1, "in_flight": 1} | trouble)).met


def test_the_proxy_of_the_containers_is_the_one_that_is_tried() -> None:
    made = configuration([1, 2], 3, Path("/somewhere"))
    assert "server 127.0.0.1:1 max_fails=0; server 127.0.0.1:2 max_fails=0;" in made
    assert "listen 127.0.0.1:3;" in made
    assert "proxy_next_upstream error timeout http_503 non_idempotent;" in made
    assert "resolver" not in made
