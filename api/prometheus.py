"""Metrics for Prometheus, on BentoML's page /metrics beside BentoML's own metrics.

Every worker counts into its own files. The worker that serves the page adds them up. All series with all their labels
exist from the start, so no request of a client can create a new one.
"""

import os
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

from utils.errors import NotNow
from utils.settings import counters_folder

# The outcome and reason of a request, by the status of its response.
BY_STATUS = {
    200: ("answered", ""),
    400: ("refused", "invalid"),
    401: ("refused", "key"),
    404: ("refused", "unknown prediction"),
    408: ("refused", "slow"),
    413: ("refused", "too large"),
    415: ("refused", "not json"),
    500: ("failed", "error"),
    504: ("failed", "timeout"),
}
NOT_NOW = {cause: ("failed", cause) for cause in NotNow.CAUSES}
GONE = ("gone", "")  # the client disconnected before its request had arrived
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STAGES = ("queue", "score", "commit")

CAUSE: ContextVar[str] = ContextVar("cause", default="")  # why the current request gets a 503


class Numbers:
    """One worker's metrics. `service` is the model's name, the `service_name` of BentoML's own series."""

    def __init__(self, service: str, *, endpoints: Iterable[str]) -> None:
        _forget_dead_workers()
        self._service = service
        self.registry = CollectorRegistry()  # this worker's metrics only; the page is made from the files
        requests = Counter(
            "evergreen_requests",
            "Requests by endpoint, outcome (answered, refused, failed, gone) and reason",
            ("service_name", "endpoint", "outcome", "reason"),
            registry=self.registry,
        )
        outcomes = {*BY_STATUS.values(), *NOT_NOW.values(), GONE}
        self._requests = {
            (endpoint, *outcome): requests.labels(service, endpoint, *outcome)
            for endpoint in endpoints
            for outcome in outcomes
        }
        stages = Histogram(
            "evergreen_stage_seconds",
            "Of a batch of requests: the longest wait in it, its scoring, its commit to the log",
            ("service_name", "stage"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stages = [stages.labels(service, stage) for stage in STAGES]
        rows = Histogram(
            "evergreen_batch_rows", "Rows scored together", ("service_name",), buckets=ROWS, registry=self.registry
        )
        self._rows = rows.labels(service)
        self._version = self._gauge("model_version", "Version served, the lowest of all workers; 0: none", "livemin")
        self._deployed = self._gauge(
            "model_deployed_timestamp_seconds", "When it was decided that it should serve; 0: no version", "livemin"
        )
        self._fitted = self._gauge(
            "model_fitted_timestamp_seconds",
            "Newest label it learned from, or when it was deployed where data have no time; 0: no version",
            "livemin",
        )
        self._spool_rows = self._gauge("spool_rows", "Rows answered and not in MariaDB yet", "livesum")
        self._spool_age = self._gauge("spool_oldest_seconds", "Age of the oldest of them", "livemax")
        self._spool_filled = self._gauge("spool_filled_ratio", "Part of a spool's room that is taken", "livemax")

    def _gauge(self, name: str, description: str, mode: Literal["livemin", "livemax", "livesum"]) -> Gauge:
        """A gauge over the living workers. `mode` combines their values into one."""
        gauge = Gauge(
            f"evergreen_{name}", description, ("service_name",), registry=self.registry, multiprocess_mode=mode
        )
        return gauge.labels(self._service)

    def request(self, endpoint: str, status: int | None) -> None:
        """Count a request by the `status` of its response. None: the client disconnected first."""
        if status is None:
            outcome = GONE
        elif status == 503:
            outcome = NOT_NOW.get(CAUSE.get(), NOT_NOW["away"])
        else:
            outcome = BY_STATUS.get(status, BY_STATUS[500])
        self._requests[(endpoint, *outcome)].inc()

    def batch(self, *, rows: int, queue: float, score: float, commit: float) -> None:
        """Count an answered batch. Times are in seconds. `queue` is the longest wait of its requests."""
        self._rows.observe(rows)
        for stage, seconds in zip(self._stages, (queue, score, commit), strict=True):
            stage.observe(seconds)

    def set_version(self, number: int, *, deployed_at: datetime, fitted_until: datetime | None) -> None:
        """Publish the version that this worker serves from now on, and its age. Times are UTC.

        `fitted_until`: the newest label that the version learned from. None if the data has no time.
        """
        self._version.set(number)
        self._deployed.set(_unix(deployed_at))
        self._fitted.set(_unix(fitted_until or deployed_at))

    def set_spool(self, rows: int, age_seconds: float, filled: float = 0.0) -> None:
        """Publish the depth of this worker's spool: its rows, the age of the oldest, and its used share, 0 to 1."""
        self._spool_rows.set(rows)
        self._spool_age.set(age_seconds)
        self._spool_filled.set(filled)


def _unix(time: datetime) -> float:
    """Seconds since 1970 of `time`, UTC."""
    return time.replace(tzinfo=UTC).timestamp()


def _forget_dead_workers() -> None:
    """Remove the gauges of killed workers from the page. Nothing else removes them."""
    folder = counters_folder()
    for file in folder.glob("gauge_live*.db") if folder else ():
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
