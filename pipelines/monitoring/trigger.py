"""Trigger: whether what is known of a model is a reason to train it again. Pure; `evidence` gathers, this decides.

A reason says why, a block says why not now. Missing evidence is no reason. A verdict of "not better" is healthy: it
starts no backoff, the next reason is heard as soon as the cooldown is over.
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
    """What drift said of one window. `drifted`: features, the worst first. `defects`: what is broken, a line each.

    answered: the newest rows of the last training look the same, so it has learned what there is to learn.
    """

    start: datetime
    end: datetime
    rows: int
    drifted: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """The newest result of performance, one-sided bounds; `lost` is against `judged` and the margin."""

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
    """All that a decision is made on; times UTC.

    version: the one that serves, None before the first. windows: its newest ones, the latest last. rejects: fields that
    the newest requests are refused for, a line each. new_labels: since the last training that finished.
    usable_labels of needed_labels: those that a new candidate could be compared on now. spent: when trainings that the
    budget counts were decided. held_since: the first of the decisions in a row that had a reason and were held back.
    alerted_at, broken_alerted_at: the last alert about that, and about a broken source.
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
    """A reason or a block: `cause` for the row, `text` for people."""

    cause: str
    text: str


@dataclass(frozen=True, slots=True)
class RetrainingDecision:
    """`alert` is what people must hear of now, or None."""

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
    """Retrain where there is a reason and no block; else hold, and say what is missing or in the way."""
    if history.version is None:
        return RetrainingDecision(
            "hold", "no_version", "nothing serves yet, so there is nothing to keep fresh", None, (), ()
        )
    reasons = tuple(note for note in _reasons(history, policy, now) if note.cause in policy.retrain.on)
    broken = _broken(history)
    blocks = tuple(([broken] if broken else []) + ([*_blocks(history, policy, now, reasons)] if reasons else []))
    told = "; ".join(note.text for note in reasons)
    if not blocks and reasons:
        return RetrainingDecision("retrain", reasons[0].cause, told, None, reasons, ())
    if not blocks:
        return RetrainingDecision("hold", "no_reason", _calm(history, policy), None, (), ())
    why = "; ".join(note.text for note in blocks)
    alert = _alert(history, policy, now, broken=broken, held=bool(reasons))
    text = f"{told}; held back: {why}" if reasons else why
    return RetrainingDecision("hold", blocks[0].cause, text, f"{alert}: {text}" if alert else None, reasons, blocks)


def _reasons(history: MonitoringState, policy: Policy, now: datetime) -> Iterator[Note]:
    """In the order of their weight: the first one names the decision."""
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
        age, most = _days(now - history.last_finished), show_duration(policy.retrain.max_age)
        yield Note("age", f"the last training was {age} ago, {most} is the most")


def _drift(history: MonitoringState, policy: Drift) -> Iterator[Note]:
    """`breaches` of the last `of` windows, the latest among them; a broken or answered window is no breach."""
    recent = history.windows[-policy.of :]
    breaches = [window for window in recent if window.drifted and not window.defects and not window.answered]
    if recent and recent[-1] in breaches and len(breaches) >= policy.breaches:
        features = ", ".join(recent[-1].drifted[:5])
        yield Note(
            "drift",
            f"{features} drifted from version {history.version}'s training in {len(breaches)} of the"
            f" last {len(recent)} windows, the latest to {recent[-1].end}",
        )


def _broken(history: MonitoringState) -> Note | None:
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
        short = history.needed_labels - history.usable_labels
        yield Note("too_few_labels", f"{short:,} more labels are needed to judge what a training would make")
    if history.last_started and now - history.last_started < retrain.cooldown:
        since, least = _days(now - history.last_started), show_duration(retrain.cooldown)
        yield Note("cooldown", f"the last training began {since} ago, {least} is the least between two")
    spent = [moment for moment in history.spent if now - moment < WEEK]
    if len(spent) >= retrain.per_week and all(note.cause in BUDGETED for note in reasons):
        yield Note("budget", f"{len(spent)} trainings in the last seven days, {retrain.per_week} is the most")


def _alert(history: MonitoringState, policy: Policy, now: datetime, *, broken: Note | None, held: bool) -> str | None:
    """A broken source is told at once; what is held back, when it has waited too long. Either again after as long."""
    wait = policy.retrain.max_wait
    if broken and (history.broken_alerted_at is None or now - history.broken_alerted_at >= wait):
        return "broken source, not retrained"
    long = held and history.held_since is not None and now - history.held_since >= wait
    if long and (history.alerted_at is None or now - history.alerted_at >= wait):
        return f"a training has been due for {show_duration(wait)}"
    return None


def _calm(history: MonitoringState, policy: Policy) -> str:
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


def _days(duration: timedelta) -> str:
    """A duration for people, in the greatest unit it fills: `2.5 d`."""
    seconds = duration.total_seconds()
    unit, size = next(((u, s) for u, s in (("d", 86_400), ("h", 3600), ("min", 60)) if seconds >= s), ("s", 1))
    return f"{seconds / size:.3g} {unit}"
