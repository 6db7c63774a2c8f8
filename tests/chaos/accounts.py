"""The outcome of each request that was sent during a fault, compared with the log afterwards."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from sqlalchemy import text

from db.session import session
from tests.chaos.traffic import Request, Traffic
from tests.services import Service
from utils.errors import GaveUp, Unreachable
from utils.patience import Patience

LOG_PATIENCE = 120.0  # seconds without another row in the log
LOGGED = "SELECT prediction_id, entity_id FROM prediction_log WHERE model = :model AND entity_id LIKE :mark"
DEAD = "SELECT prediction_id, entity_id FROM dead_letter WHERE model = :model AND entity_id LIKE :mark"


@dataclass(slots=True)
class Period:
    """A span from `began` to `ended`, in seconds of `time.monotonic`."""

    began: float
    ended: float = inf

    def overlaps(self, request: Request) -> bool:
        return self.began <= request.ended and request.sent <= self.ended


@dataclass(frozen=True, slots=True)
class Kill:
    """Processes that were killed together.

    at: when the last one had ended, in seconds of `time.monotonic`.
    ports: client ports of their connections. None means all connections.
    """

    at: float
    ports: frozenset[int] | None = None

    def cut_off(self, request: Request) -> bool:
        return request.connected <= self.at and (self.ports is None or request.port in self.ports)


@dataclass(slots=True)
class Run:
    """One fault: its traffic and the times at which parts were broken.

    kills: the killed processes.
    outages: periods in which neither MariaDB nor the spool could take a row.
    downtimes: periods in which nothing listened, from a stop to the next start.
    """

    service: Service
    traffic: Traffic
    kills: list[Kill] = field(default_factory=list)
    outages: list[Period] = field(default_factory=list)
    downtimes: list[Period] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Account:
    """One row of the table. Counts are requests, except `dead`.

    failed: requests that no other column explains, and those of `in_flight`.
    in_flight: failed requests on a connection to a process that was killed.
    lost: answered, but neither in the log nor in dead_letter.
    twice: logged more than once.
    unavailable: 503 with Retry-After, while both MariaDB and spool were out.
    refused: refused while nothing listened.
    poisoned: failed alone, because MariaDB rejects their row.
    dead: rows in dead_letter, from requests that were answered from the spool.
    why: reasons of the failed requests that were not in flight.
    problem: why the fault did not go as it should.
    skipped: why the fault was not run.
    """

    fault: str
    requests: int = 0
    failed: int = 0
    in_flight: int = 0
    lost: int = 0
    twice: int = 0
    unavailable: int = 0
    refused: int = 0
    poisoned: int = 0
    dead: int = 0
    why: tuple[str, ...] = ()
    problem: str = ""
    skipped: str = ""

    @property
    def met(self) -> bool:
        return not (self.problem or self.skipped or self.lost or self.twice or self.failed > self.in_flight)


def settle(run: Run) -> None:
    """Wait until every answered prediction is in the log or in dead_letter, or until no more rows arrive."""
    answered_ids = {request.prediction_id for request in run.traffic.requests if request.status == 200}

    def missing() -> int:
        try:
            return len(answered_ids - {*_ids(run, LOGGED), *_ids(run, DEAD)})
        except Unreachable:
            return len(answered_ids)

    with suppress(GaveUp):  # the account counts the missing rows
        Patience("the log", missing, seconds=LOG_PATIENCE).until(lambda: not missing(), every=0.2)


def account(fault: str, run: Run, *, problem: str = "") -> Account:
    """The row of `fault`. Call it after `settle`."""
    requests, log_rows, dead_rows = run.traffic.requests, _ids(run, LOGGED), _ids(run, DEAD)
    log_counts = Counter(log_rows.values())
    unanswered = [each for each in requests if each.status != 200]
    kinds = {id(each): _kind(each, run) for each in unanswered}
    failed = [each for each in unanswered if kinds[id(each)] in {"failed", "in flight"}]
    kind_counts = Counter(kinds.values())
    return Account(
        fault=fault,
        requests=len(requests),
        failed=len(failed),
        in_flight=kind_counts["in flight"],
        lost=sum(each.status == 200 and each.prediction_id not in log_rows | dead_rows for each in requests),
        twice=sum(count > 1 for count in log_counts.values()),
        unavailable=kind_counts["unavailable"],
        refused=kind_counts["refused"],
        poisoned=kind_counts["poisoned"],
        dead=len(dead_rows),
        why=tuple(_reasons((each for each in unanswered if kinds[id(each)] == "failed"), began=requests[0].sent)),
        problem=problem,
    )


def _kind(request: Request, run: Run) -> str:
    """The column to which a request without an answer belongs."""
    if request.is_poisoned and request.status == 500:
        return "poisoned"
    if request.status == 503 and request.retry_after and any(each.overlaps(request) for each in run.outages):
        return "unavailable"
    if request.problem == "refused" and any(each.overlaps(request) for each in run.downtimes):
        return "refused"
    if request.problem == "lost" and any(each.cut_off(request) for each in run.kills):
        return "in flight"
    return "failed"


def _reasons(failed: Iterable[Request], *, began: float) -> list[str]:
    """For each reason, the number of failed requests and the seconds from `began` to the first one."""
    by_reason: dict[str, list[float]] = {}
    for each in failed:
        by_reason.setdefault(each.problem or f"status {each.status}", []).append(each.sent - began)
    return [f"{len(times)} {reason}, the first after {min(times):.1f} s" for reason, times in by_reason.items()]


def _ids(run: Run, query: str) -> dict[str, str]:
    """The entities of logged rows by prediction_id."""
    with session(run.service.settings, "reader") as connection:
        rows = connection.execute(text(query), {"model": run.service.spec.name, "mark": f"{run.traffic.mark}-%"})
        return {str(prediction): str(entity) for prediction, entity in rows}
