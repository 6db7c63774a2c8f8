"""Follow the rows that the platform writes about a model, and print each one as a line."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from sqlalchemy import RowMapping

from db.history import timeline
from db.session import session
from pipelines.spec import ModelSpec
from utils.clock import utc_now
from utils.errors import GaveUp, StackError
from utils.patience import Patience
from utils.settings import Settings

DEMO_POLL = 0.5  # seconds between two reads of the rows
STEP_PATIENCE = 300.0  # seconds without a new step; Airflow may take minutes to notice a changed model file
VERDICTS = {"promote": "may serve", "reject": "may not serve", "wait": "waits for more labels"}


@dataclass(slots=True)
class Watch:
    """Prints each event of a model and each alert of its webhook once.

    settings: the settings of the stack.
    spec: the model file.
    console: the output.
    since: earlier events are ignored, UTC.
    alerts: the alerts that the webhook has received so far.
    events: the events since `since`, each as (time in UTC, kind, row).
    """

    settings: Settings
    spec: ModelSpec
    console: Console
    since: datetime
    alerts: list[dict[str, Any]]
    events: list[tuple[datetime, str, RowMapping]] = field(default_factory=list)
    _printed: set[tuple[str, object]] = field(default_factory=set)
    _alerts_printed: int = 0

    def until(self, reached: Callable[[], bool], sign: Callable[[], object], *, traffic: "Future[Any]") -> str:
        """Print new events until `reached` is true. Return an empty text.

        If `sign` does not change for `STEP_PATIENCE` seconds, return an error text instead. `traffic` must not end
        during the wait.

        Raises: StackError if the traffic ends; the traffic's own error if it failed.
        """

        def is_reached() -> bool:
            if traffic.done():
                raise StackError(f"the traffic ended early: {traffic.result()}")
            self.print_new_events()
            return reached()

        try:
            Patience("what the platform should do", sign, seconds=STEP_PATIENCE).until(is_reached, every=DEMO_POLL)
        except GaveUp as error:
            return str(error)
        return ""

    def print_new_events(self) -> None:
        """Read the events, and print the new events and alerts."""
        with session(self.settings, "reader") as connection:
            self.events = timeline.events(connection, self.spec.name, since=self.since)
        for at, kind, row in self.events:
            key = (kind, row["run_id"] if kind in {"training", "trained"} else row["id"])
            if key not in self._printed:
                self._printed.add(key)
                self._print_line(describe(kind, row), at=at)
        for alert in self.alerts[self._alerts_printed :]:
            self._print_line(f"the webhook gets an alert: {alert['text']}", at=utc_now())
        self._alerts_printed = len(self.alerts)

    def rows(self, kind: str, *, after: datetime | None = None, **values: object) -> list[RowMapping]:
        """Return the rows of a kind (a key of `timeline.MOMENTS`) with `values`, from `after` on, the oldest first."""
        since = after or self.since
        rows = [row for at, row_kind, row in self.events if row_kind == kind and at >= since]
        return [row for row in rows if all(row[name] == value for name, value in values.items())]

    def windows(self, *, after: datetime) -> int:
        """The number of windows that begin at `after` or later and were compared with the profile."""
        return sum(row["window_start"] >= after for row in self.rows("drift"))

    def _print_line(self, text: str, *, at: datetime) -> None:
        seconds = (at - self.since).total_seconds()
        self.console.print(f"  [dim]{seconds:6.1f} s[/dim]  {escape(text)}", soft_wrap=True)


def describe(kind: str, row: RowMapping) -> str:
    """Describe a row of a kind (a key of `timeline.MOMENTS`) in one line."""
    return _DESCRIPTIONS[kind](row)


def _describe_drift(row: RowMapping) -> str:
    window = f"window {row['window_start']:%H:%M:%S} to {row['window_end']:%H:%M:%S}, {row['row_count']:,} rows"
    if defects := row["evidence"]["defects"]:
        return f"{window}: {len(defects)} features print_new_events broken, {defects[0]['feature']} first"
    if not row["drifted"]:
        return f"{window}: as in training"
    difference = row["evidence"]["differences"][row["worst"]]
    more_text = f" and {more_count} more" if (more_count := len(row["evidence"]["drifted"]) - 1) else ""
    return (
        f"{window}: drift in {row['worst']} (PSI {difference['psi']:.2f}, limit {difference['limit']:.2f}){more_text}"
    )


def _describe_performance(row: RowMapping) -> str:
    judged_text = f", {row['judged']:.3f} when it was judged" if row["judged"] is not None else ""
    value_text = f"{row['metric']} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return f"version {row['version']}: {value_text} over {row['label_count']:,} labels{judged_text}"


def _describe_decision(row: RowMapping) -> str:
    if row["action"] == "retrain":
        return f"decided: retrain. {row['reason']}"
    if row["alert"]:
        return f"decided: do not retrain, alert people. {row['alert']}"
    return f"decided: no training ({row['cause'].replace('_', ' ')})"


def _describe_training_start(row: RowMapping) -> str:
    return f"a training begins, because of {row['reason'].partition(':')[0]}"


def _describe_training_end(row: RowMapping) -> str:
    return f"the training has {row['state']}, candidate version {row['candidate_version']}"


def _describe_verdict(row: RowMapping) -> str:
    return f"candidate version {row['candidate_version']} {VERDICTS[row['verdict']]}: {row['reason']}"


def _describe_deployment(row: RowMapping) -> str:
    action_texts = {"deploy": "is put into service", "rollback": "is put back into service", "live": "is live"}
    return f"version {row['version']} {action_texts.get(row['action'], row['action'])}: {row['reason']}"


_DESCRIPTIONS: dict[str, Callable[[RowMapping], str]] = {
    "drift": _describe_drift,
    "performance": _describe_performance,
    "retraining": _describe_decision,
    "training": _describe_training_start,
    "trained": _describe_training_end,
    "verdict": _describe_verdict,
    "deployment": _describe_deployment,
}
