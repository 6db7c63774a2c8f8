"""What became of the requests that were sent while something broke, against what the log holds afterwards."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from sqlalchemy import text

from db.session import session
from tests.chaos.traffic import Asked, Traffic
from tests.services import Service
from utils.errors import GaveUp, Unreachable
from utils.patience import Patience

LOG_PATIENCE = 120.0  # seconds without another row in the log
LOGGED = "SELECT prediction_id, entity_id FROM prediction_log WHERE model = :model AND entity_id LIKE :mark"
DEAD = "SELECT prediction_id, entity_id FROM dead_letter WHERE model = :model AND entity_id LIKE :mark"


@dataclass(slots=True)
class Period:
    """From `began` to `ended`, of `time.monotonic`."""

    began: float
    ended: float = inf

    def overlaps(self, asked: Asked) -> bool:
        return self.began <= asked.ended and asked.sent <= self.ended


@dataclass(frozen=True, slots=True)
class Killed:
    """Processes that were gone at `gone`. `ports`: the clients' ends of their connections; None: of all there were."""

    gone: float
    ports: frozenset[int] | None = None

    def had(self, asked: Asked) -> bool:
        return asked.connected <= self.gone and (self.ports is None or asked.port in self.ports)


@dataclass(slots=True)
class Run:
    """One fault: its traffic, and what was broken when."""

    service: Service
    traffic: Traffic
    killed: list[Killed] = field(default_factory=list)
    both_out: list[Period] = field(default_factory=list)  # neither MariaDB nor the spool could take a row
    down: list[Period] = field(default_factory=list)  # nothing listened, from the stop to the next start


@dataclass(frozen=True, slots=True)
class Account:
    """One row of the table. `failed` holds what no other column explains, and the `in_flight`."""

    fault: str
    requests: int = 0
    failed: int = 0
    in_flight: int = 0  # of the failed: on a connection to a process that was killed
    lost: int = 0  # answered but not logged
    twice: int = 0
    unavailable: int = 0  # 503 with Retry-After, while both MariaDB and spool were out
    refused: int = 0  # while nothing listened
    poisoned: int = 0  # rows that MariaDB refuses, failed alone
    dead: int = 0  # such rows that were answered from the spool, and are in dead_letter
    why: tuple[str, ...] = ()  # of those that failed, and were not in flight
    problem: str = ""  # why the fault did not go as it should
    skipped: str = ""  # why it was not run

    @property
    def met(self) -> bool:
        return not (self.problem or self.skipped or self.lost or self.twice or self.failed > self.in_flight)


def settle(run: Run) -> None:
    """Wait until every answered prediction is in the log, or no more of them come."""
    answered = {asked.prediction_id for asked in run.traffic.asked if asked.status == 200}

    def missing() -> int:
        try:
            return len(answered - {*_ids(run, LOGGED), *_ids(run, DEAD)})
        except Unreachable:
            return len(answered)

    with suppress(GaveUp):  # the account says how many are missing
        Patience("the log", missing, seconds=LOG_PATIENCE).until(lambda: not missing(), every=0.2)


def account(fault: str, run: Run, *, problem: str = "") -> Account:
    """The row of `fault`. Call it after `settle`."""
    asked, logged, dead = run.traffic.asked, _ids(run, LOGGED), _ids(run, DEAD)
    rows = Counter(logged.values())
    unanswered = [each for each in asked if each.status != 200]
    kinds = {id(each): _kind(each, run) for each in unanswered}
    failed = [each for each in unanswered if kinds[id(each)] in {"failed", "in flight"}]
    count = Counter(kinds.values())
    return Account(
        fault=fault,
        requests=len(asked),
        failed=len(failed),
        in_flight=count["in flight"],
        lost=sum(each.status == 200 and each.prediction_id not in logged | dead for each in asked),
        twice=sum(many > 1 for many in rows.values()),
        unavailable=count["unavailable"],
        refused=count["refused"],
        poisoned=count["poisoned"],
        dead=len(dead),
        why=tuple(_reasons((each for each in unanswered if kinds[id(each)] == "failed"), began=asked[0].sent)),
        problem=problem,
    )


def _kind(asked: Asked, run: Run) -> str:
    """Which column a request without an answer belongs to."""
    if asked.is_poisoned and asked.status == 500:
        return "poisoned"
    if asked.status == 503 and asked.retry_after and any(each.overlaps(asked) for each in run.both_out):
        return "unavailable"
    if asked.problem == "refused" and any(each.overlaps(asked) for each in run.down):
        return "refused"
    if asked.problem == "lost" and any(each.had(asked) for each in run.killed):
        return "in flight"
    return "failed"


def _reasons(failed: Iterable[Asked], *, began: float) -> list[str]:
    """How many failed in which way, and how many seconds after `began` the first of them."""
    by_reason: dict[str, list[float]] = {}
    for each in failed:
        by_reason.setdefault(each.problem or f"status {each.status}", []).append(each.sent - began)
    return [f"{len(times)} {reason}, the first after {min(times):.1f} s" for reason, times in by_reason.items()]


def _ids(run: Run, query: str) -> dict[str, str]:
    """Entity by prediction_id."""
    with session(run.service.settings, "reader") as connection:
        found = connection.execute(text(query), {"model": run.service.spec.name, "mark": f"{run.traffic.mark}-%"})
        return {str(prediction): str(entity) for prediction, entity in found}
