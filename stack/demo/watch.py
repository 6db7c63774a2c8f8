"""Follow what the platform writes about a model and tell it in words, as it happens."""

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

DEMO_POLL = 0.5  # seconds
STEP_PATIENCE = 300.0  # seconds without the next step; Airflow may take minutes to notice a changed model file
VERDICTS = {"promote": "may serve", "reject": "may not serve", "wait": "waits for more labels"}


@dataclass(slots=True)
class Watch:
    """The events of a model from `since` (UTC) on, and the alerts that its webhook got; both are told once."""

    settings: Settings
    spec: ModelSpec
    console: Console
    since: datetime
    alerts: list[dict[str, Any]]
    seen: list[tuple[datetime, str, RowMapping]] = field(default_factory=list)
    _told: set[tuple[str, object]] = field(default_factory=set)
    _alerts_told: int = 0

    def until(self, reached: Callable[[], bool], sign: Callable[[], object], *, beside: "Future[Any]") -> str:
        """Look until `reached`, or until `sign` has not changed for `PATIENCE` seconds; then it says so.

        Raises: StackError where what goes on `beside` ends before; what it raised.
        """

        def seen() -> bool:
            if beside.done():
                raise StackError(f"the traffic ended early: {beside.result()}")
            self.look()
            return reached()

        try:
            Patience("what the platform should do", sign, seconds=STEP_PATIENCE).until(seen, every=DEMO_POLL)
        except GaveUp as error:
            return str(error)
        return ""

    def look(self) -> None:
        """Read what is new, and tell it."""
        with session(self.settings, "reader") as connection:
            self.seen = timeline.events(connection, self.spec.name, since=self.since)
        for at, kind, row in self.seen:
            key = (kind, row["run_id"] if kind in {"training", "trained"} else row["id"])
            if key not in self._told:
                self._told.add(key)
                self._say(words(kind, row), at=at)
        for alert in self.alerts[self._alerts_told :]:
            self._say(f"the webhook gets an alert: {alert['text']}", at=utc_now())
        self._alerts_told = len(self.alerts)

    def rows(self, kind: str, *, after: datetime | None = None, **values: object) -> list[RowMapping]:
        """Rows of a kind (a key of `timeline.MOMENTS`) with these values, from `after` on; the oldest first."""
        since = after or self.since
        found = [row for at, each, row in self.seen if each == kind and at >= since]
        return [row for row in found if all(row[name] == value for name, value in values.items())]

    def windows(self, *, after: datetime) -> int:
        """How many windows that began at `after` or later were held against the training."""
        return sum(row["window_start"] >= after for row in self.rows("drift"))

    def _say(self, text: str, *, at: datetime) -> None:
        passed = (at - self.since).total_seconds()
        self.console.print(f"  [dim]{passed:6.1f} s[/dim]  {escape(text)}", soft_wrap=True)


def words(kind: str, row: RowMapping) -> str:
    """What a row (`timeline.MOMENTS`) says, in a line."""
    return _WORDS[kind](row)


def _drift(row: RowMapping) -> str:
    window = f"window {row['window_start']:%H:%M:%S} to {row['window_end']:%H:%M:%S}, {row['row_count']:,} rows"
    if broken := row["evidence"]["defects"]:
        return f"{window}: {len(broken)} features look broken, {broken[0]['feature']} first"
    if not row["drifted"]:
        return f"{window}: as in training"
    found = row["evidence"]["differences"][row["worst"]]
    others = f" and {more} more" if (more := len(row["evidence"]["drifted"]) - 1) else ""
    return f"{window}: drift in {row['worst']} (PSI {found['psi']:.2f}, limit {found['limit']:.2f}){others}"


def _performance(row: RowMapping) -> str:
    judged = f", {row['judged']:.3f} when it was judged" if row["judged"] is not None else ""
    found = f"{row['metric']} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return f"version {row['version']}: {found} over {row['label_count']:,} labels{judged}"


def _retraining(row: RowMapping) -> str:
    if row["action"] == "retrain":
        return f"decided: retrain. {row['reason']}"
    if row["alert"]:
        return f"decided: do not retrain, alert people. {row['alert']}"
    return f"decided: no training ({row['cause'].replace('_', ' ')})"


def _training(row: RowMapping) -> str:
    return f"a training begins, because of {row['reason'].partition(':')[0]}"


def _trained(row: RowMapping) -> str:
    return f"the training has {row['state']}, candidate version {row['candidate_version']}"


def _verdict(row: RowMapping) -> str:
    return f"candidate version {row['candidate_version']} {VERDICTS[row['verdict']]}: {row['reason']}"


def _deployment(row: RowMapping) -> str:
    said = {"deploy": "is put into service", "rollback": "is put back into service", "live": "is live"}
    return f"version {row['version']} {said.get(row['action'], row['action'])}: {row['reason']}"


_WORDS: dict[str, Callable[[RowMapping], str]] = {
    "drift": _drift,
    "performance": _performance,
    "retraining": _retraining,
    "training": _training,
    "trained": _trained,
    "verdict": _verdict,
    "deployment": _deployment,
}
