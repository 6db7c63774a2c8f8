"""Trigger: decide whether to retrain a model. Pure; `evidence` collects the input.

A reason speaks for a training, a block against a training now. Missing evidence is no reason. A candidate that is not
better is a normal result: it starts no backoff, and the next reason counts as soon as the cooldown is over.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pipelines.spec import Drift, ModelSpec, Retrain
from utils.duration import show_duration

WEEK = timedelta(days=7)
BUDGETED = ("drift", "performance", "new_labels")  # causes that the weekly budget counts


@dataclass(frozen=True, slots=True)
class Policy:
    drift: Drift
    retrain: Retrain

    @classmethod
    def of(cls, spec: ModelSpec) -> "Policy":
        return cls(spec.monitoring.drift, spec.retrain)


@dataclass(frozen=True, slots=True)
class Window:
    """The drift result of one window. Times are UTC.

    rows: the number of rows.
    drifted: the drifted features, the worst first.
    defects: the defects, a line each.
    answered: the newest rows of the last training are distributed like the window, so it has already learned from them.
    """

    start: datetime
    end: datetime
    rows: int
    drifted: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """The newest performance result. Times are UTC.

    end: the end of the window.
    metric: the name of the metric.
    value: the metric over the window's labelled predictions.
    low, high: one-sided confidence bounds of `value`.
    judged: the metric on the test rows that the version was judged on. None if it is not recorded.
    lost: whether even the better bound is worse than `judged` by more than the margin.
    measured_at: the time of the measurement.
    """

    end: datetime
    metric: str
    value: float
    low: float
    high: float
    judged: float | None
    lost: bool
    measured_at: datetime


@dataclass(frozen=True, slots=True)
class MonitoringState:
    """The input of a decision. Times are UTC.

    version: the version that serves. None before the first deployment.
    windows: the version's newest windows, the latest one last.
    performance: the newest performance result. None without one.
    rejects: the fields for which the newest requests were refused too often, a line each.
    new_labels: the number of labels since the last finished training.
    usable_labels: the number of labels on which a new candidate could be compared now.
    needed_labels: the number of labels that a comparison needs.
    last_started: the start of the last training.
    last_finished: the start of the last finished training.
    open_decision: the id of a decision to retrain that waits for a run.
    running: the id of a running training.
    spent: the decision times of trainings that the budget counts.
    held_since: the time of the first decision in the current row of decisions that had a reason and were held back.
    alerted_at: the time of the last alert about these held-back decisions.
    broken_alerted_at: the time of the last alert about the current broken source.
    """

    version: int | None
    windows: tuple[Window, ...] = ()
    performance: Measured | None = None
    rejects: tuple[str, ...] = ()
    new_labels: int = 0
    usable_labels: int = 0
    needed_labels: int = 0
    last_started: datetime | None = None
    last_finished: datetime | None = None
    open_decision: int | None = None
    running: str | None = None
    spent: tuple[datetime, ...] = ()
    held_since: datetime | None = None
    alerted_at: datetime | None = None
    broken_alerted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A reason or a block. `cause` goes to the row, `text` is for people."""

    cause: str
    text: str


@dataclass(frozen=True, slots=True)
class RetrainingDecision:
    """The decision to retrain or to hold.

    cause: the cause of the first block, or else of the first reason; `no_version` and `no_reason` without either.
    reason: the text for people.
    alert: the text of an alert to send now, or None.
    """

    action: Literal["retrain", "hold"]
    cause: str
    reason: str
    alert: str | None
    reasons: tuple[Note, ...]
    blocks: tuple[Note, ...]

    @property
    def evidence(self) -> dict[str, Any]:
        return {"reasons": [asdict(note) for note in self.reasons], "blocks": [asdict(note) for note in self.blocks]}


def decide_retraining(history: MonitoringState, policy: Policy, now: datetime) -> RetrainingDecision:
    """Retrain if there is a reason and no block. Otherwise hold, and name the blocks or the missing reason."""
    if history.version is None:
        return RetrainingDecision(
            "hold", "no_version", "nothing serves yet, so there is nothing to keep fresh", None, (), ()
        )
    reasons = tuple(note for note in _reasons(history, policy, now) if note.cause in policy.retrain.on)
    broken = _broken_source(history)
    blocks = tuple(([broken] if broken else []) + ([*_blocks(history, policy, now, reasons)] if reasons else []))
    reasons_text = "; ".join(note.text for note in reasons)
    if not blocks and reasons:
        return RetrainingDecision("retrain", reasons[0].cause, reasons_text, None, reasons, ())
    if not blocks:
        return RetrainingDecision("hold", "no_reason", _no_reason_text(history, policy), None, (), ())
    blocks_text = "; ".join(note.text for note in blocks)
    alert = _alert(history, policy, now, broken=broken, held=bool(reasons))
    text = f"{reasons_text}; held back: {blocks_text}" if reasons else blocks_text
    return RetrainingDecision("hold", blocks[0].cause, text, f"{alert}: {text}" if alert else None, reasons, blocks)


def _reasons(history: MonitoringState, policy: Policy, now: datetime) -> Iterator[Note]:
    """The reasons to retrain, the most important first. The first one becomes the cause of the decision."""
    yield from _drift(history, policy.drift)
    measured = history.performance
    if measured and measured.lost and not _before(measured.measured_at, history.last_started):
        yield Note(
            "performance",
            f"{measured.metric} {measured.value:.4f} [{measured.low:.4f}, {measured.high:.4f}] of version"
            f" {history.version} in the window to {measured.end}, {measured.judged:.4f} when it was judged",
        )
    if history.new_labels >= policy.retrain.new_labels:
        yield Note("new_labels", f"{history.new_labels:,} labels since the last training")
    if history.last_finished and now - history.last_finished > policy.retrain.max_age:
        age, limit = _duration_text(now - history.last_finished), show_duration(policy.retrain.max_age)
        yield Note("age", f"the last training was {age} ago, {limit} is the most")


def _drift(history: MonitoringState, policy: Drift) -> Iterator[Note]:
    """A reason if `breaches` of the last `of` windows drifted, including the latest one.

    A window with defects and an answered window do not count.
    """
    recent = history.windows[-policy.of :]
    breaches = [window for window in recent if window.drifted and not window.defects and not window.answered]
    if recent and recent[-1] in breaches and len(breaches) >= policy.breaches:
        features = ", ".join(recent[-1].drifted[:5])
        yield Note(
            "drift",
            f"{features} drifted from version {history.version}'s training in {len(breaches)} of the"
            f" last {len(recent)} windows, the latest to {recent[-1].end}",
        )


def _broken_source(history: MonitoringState) -> Note | None:
    latest = history.windows[-1] if history.windows else None
    defects = (*(latest.defects if latest and not latest.answered else ()), *history.rejects)
    return Note("broken_source", f"a source looks broken: {'; '.join(defects[:5])}") if defects else None


def _blocks(history: MonitoringState, policy: Policy, now: datetime, reasons: tuple[Note, ...]) -> Iterator[Note]:
    retrain = policy.retrain
    if history.open_decision is not None:
        yield Note("under_way", f"decision {history.open_decision} to retrain waits for a run already")
    if history.running:
        yield Note("under_way", f"{history.running} is training already")
    if history.usable_labels < history.needed_labels:
        missing = history.needed_labels - history.usable_labels
        yield Note("too_few_labels", f"{missing:,} more labels are needed to judge what a training would make")
    if history.last_started and now - history.last_started < retrain.cooldown:
        since, cooldown = _duration_text(now - history.last_started), show_duration(retrain.cooldown)
        yield Note("cooldown", f"the last training began {since} ago, {cooldown} is the least between two")
    spent = [moment for moment in history.spent if now - moment < WEEK]
    if len(spent) >= retrain.per_week and all(note.cause in BUDGETED for note in reasons):
        yield Note("budget", f"{len(spent)} trainings in the last seven days, {retrain.per_week} is the most")


def _alert(history: MonitoringState, policy: Policy, now: datetime, *, broken: Note | None, held: bool) -> str | None:
    """The title of the alert to send now, or None.

    A broken source is reported at once, a held-back training after `max_wait`. Repeat both after the same time.
    """
    wait = policy.retrain.max_wait
    if broken and (history.broken_alerted_at is None or now - history.broken_alerted_at >= wait):
        return "broken source, not retrained"
    overdue = held and history.held_since is not None and now - history.held_since >= wait
    if overdue and (history.alerted_at is None or now - history.alerted_at >= wait):
        return f"a training has been due for {show_duration(wait)}"
    return None


def _no_reason_text(history: MonitoringState, policy: Policy) -> str:
    if not history.windows:
        return f"no window of version {history.version} has enough rows yet"
    latest = history.windows[-1]
    recent = history.windows[-policy.drift.of :]
    drifted = sum(bool(window.drifted) and not window.answered for window in recent)
    measured = history.performance
    quality = f"; {measured.metric} {measured.value:.4f}" if measured else "; no mature labels yet"
    return f"nothing to do: drift in {drifted} of the last {len(recent)} windows, the latest to {latest.end}{quality}"


def _before(moment: datetime, other: datetime | None) -> bool:
    return other is not None and moment <= other


def _duration_text(duration: timedelta) -> str:
    """Format a duration in its greatest unit that is at least 1, for example `2.5 d`."""
    seconds = duration.total_seconds()
    unit, size = next(((u, s) for u, s in (("d", 86_400), ("h", 3600), ("min", 60)) if seconds >= s), ("s", 1))
    return f"{seconds / size:.3g} {unit}"
