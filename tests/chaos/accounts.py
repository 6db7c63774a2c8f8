"""Account for every request of a fault: compare the outcome of each request with the prediction log."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from sqlalchemy import text

from db.session import session
from tests.chaos.traffic import RecordedTraffic, Request
from tests.services import Service
from utils.errors import GaveUp, Unreachable
from utils.patience import Patience

LOG_PATIENCE = 120.0  # seconds to wait for another row in the log
LOG_QUERY = "SELECT prediction_id, entity_id FROM prediction_log WHERE model = :model AND entity_id LIKE :mark"
DEAD_LETTER_QUERY = "SELECT prediction_id, entity_id FROM dead_letter WHERE model = :model AND entity_id LIKE :mark"


@dataclass(slots=True)
class Period:
    """A period from `began` to `ended`, in seconds of `time.monotonic`. `ended` is infinite while the period lasts."""

    began: float
    ended: float = inf

    def overlaps(self, request: Request) -> bool:
        return self.began <= request.ended and request.sent <= self.ended


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill of one or more processes at the same time.

    at: when all of them had ended, in seconds of `time.monotonic`.
    ports: the client ports of the connections that they had. None means all connections.
    """

    at: float
    ports: frozenset[int] | None = None

    def cut_off(self, request: Request) -> bool:
        """Whether the request was on a connection to a killed process."""
        return request.connected <= self.at and (self.ports is None or request.port in self.ports)


@dataclass(slots=True)
class Run:
    """One fault while it runs: its traffic, and when parts were broken.

    kills: the kills of processes.
    outages: periods in which neither MariaDB nor the spool could store a row.
    downtimes: periods in which no process listened, from a stop of the service to its next start.
    """

    service: Service
    traffic: RecordedTraffic
    kills: list[Kill] = field(default_factory=list)
    outages: list[Period] = field(default_factory=list)
    downtimes: list[Period] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Account:
    """What happened to the requests of one fault: a row of the table.

    fault: the title of the fault.
    requests: all requests that were sent.
    failed: requests without status 200, except those in `unavailable`, `refused` and `poisoned`.
    in_flight: failed requests on a connection to a killed process.
    lost: answered requests whose row is neither in the log nor in dead_letter.
    twice: requests that were logged more than once.
    unavailable: requests with the answer 503 and a Retry-After, while neither MariaDB nor the spool could store rows.
    refused: requests that could not connect, because no process listened.
    poisoned: requests that failed because MariaDB rejects their row.
    dead: rows in dead_letter. Their requests were answered while rows went to the spool.
    why: the reasons of the failed requests that are not in `in_flight`.
    problem: why the fault did not work as planned. Empty if it did.
    skipped: why the fault was not run. Empty if it was.
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
        """Whether the fault ran, no request was lost or logged twice, and only requests in flight failed."""
        return not (self.problem or self.skipped or self.lost or self.twice or self.failed > self.in_flight)


def settle(run: Run) -> None:
    """Wait until every answered prediction is in the log or in dead_letter, or until no new row arrives any more."""
    answered_ids = {request.prediction_id for request in run.traffic.requests if request.status == 200}

    def count_missing() -> int:
        try:
            return len(answered_ids - {*_read_ids(run, LOG_QUERY), *_read_ids(run, DEAD_LETTER_QUERY)})
        except Unreachable:
            return len(answered_ids)

    with suppress(GaveUp):  # `make_account` counts the missing rows as lost
        Patience("the log", count_missing, seconds=LOG_PATIENCE).until(lambda: not count_missing(), every=0.2)


def make_account(fault: str, run: Run, *, problem: str = "") -> Account:
    """Return the account of `fault`. Call this after `settle`."""
    requests, log_rows, dead_rows = run.traffic.requests, _read_ids(run, LOG_QUERY), _read_ids(run, DEAD_LETTER_QUERY)
    log_counts = Counter(log_rows.values())
    unsuccessful = [(request, _classify(request, run)) for request in requests if request.status != 200]
    kind_counts = Counter(kind for _, kind in unsuccessful)
    unexplained = [request for request, kind in unsuccessful if kind == "failed"]
    return Account(
        fault=fault,
        requests=len(requests),
        failed=kind_counts["failed"] + kind_counts["in flight"],
        in_flight=kind_counts["in flight"],
        lost=sum(request.status == 200 and request.prediction_id not in log_rows | dead_rows for request in requests),
        twice=sum(count > 1 for count in log_counts.values()),
        unavailable=kind_counts["unavailable"],
        refused=kind_counts["refused"],
        poisoned=kind_counts["poisoned"],
        dead=len(dead_rows),
        why=tuple(_list_reasons(unexplained, began=requests[0].sent)),
        problem=problem,
    )


def _classify(request: Request, run: Run) -> str:
    """Return which count of the account the request belongs to. Its status is not 200."""
    if request.is_poisoned and request.status == 500:
        return "poisoned"
    if request.status == 503 and request.retry_after and any(outage.overlaps(request) for outage in run.outages):
        return "unavailable"
    if request.problem == "refused" and any(downtime.overlaps(request) for downtime in run.downtimes):
        return "refused"
    if request.problem == "lost" and any(kill.cut_off(request) for kill in run.kills):
        return "in flight"
    return "failed"


def _list_reasons(failed: Iterable[Request], *, began: float) -> list[str]:
    """Return a text per reason: the number of requests, and the seconds from `began` to the first of them."""
    seconds_by_reason: dict[str, list[float]] = {}
    for request in failed:
        reason = request.problem or f"status {request.status}"
        seconds_by_reason.setdefault(reason, []).append(request.sent - began)
    return [f"{len(times)} {reason}, the first after {min(times):.1f} s" for reason, times in seconds_by_reason.items()]


def _read_ids(run: Run, query: str) -> dict[str, str]:
    """Run `query` for the requests of the run. Return prediction_id → entity."""
    with session(run.service.settings, "reader") as connection:
        rows = connection.execute(text(query), {"model": run.service.spec.name, "mark": f"{run.traffic.mark}-%"})
        return {str(prediction): str(entity) for prediction, entity in rows}
