"""Circumstances: everything that `trigger.decide` decides on, gathered from the rows of a model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from statistics import median

import numpy as np
from sqlalchemy import RowMapping

from db.history import decisions, deployments, trainings, window_rows
from db.session import session
from db.store import loads
from db.store.point_in_time import labels_between
from db.tables import drift_result, performance_result, window_profile
from pipelines.measures.defects import Defect, defects, rejected
from pipelines.measures.drift import compare, worst_first
from pipelines.monitoring.references import Reference, Versions, counts_of, newest_rows
from pipelines.monitoring.trigger import BUDGETED, WEEK, History, Measured, Window
from pipelines.monitoring.windows import summed, unseen
from pipelines.runs import training_runs
from pipelines.spec import EntitySplit, ModelSpec
from utils.errors import IntegrityError, NotFound
from utils.settings import Settings

NORM = 20  # windows that say which share of refused requests is ordinary

log = logging.getLogger(__name__)


def gather(settings: Settings, spec: ModelSpec, *, now: datetime) -> History:
    """What is known of the model at `now`.

    Raises: Unreachable; NotFound where MLflow lacks the version that serves.
    """
    model = spec.name
    with session(settings, "pipeline") as connection:
        serving = deployments.champion(connection, model)
        if serving is None:
            return History(version=None)
        version = int(serving["version"])
        finished = next(iter(trainings.trainings(connection, model=model, state="finished")), None)
        started = next(iter(trainings.trainings(connection, model=model)), None)
        running = next(iter(trainings.trainings(connection, model=model, state="running")), None)
        waiting = decisions.open_retraining(connection, model)
        seen = window_rows.newest_windows(
            connection, drift_result, model=model, version=version, most=spec.monitoring.drift.of
        )
        measured = window_rows.newest_windows(connection, performance_result, model=model, version=version, most=1)
        fresh = loads.labels_since(connection, model=model, commit_seq=finished["commit_seq"] if finished else 0)
        past = _past(
            decisions.last_decisions(connection, model=model, since=now - max(WEEK, 2 * spec.retrain.max_wait))
        )
        verdict = decisions.find_verdict(connection, finished["run_id"]) if finished else None
        rejects = _rejects(window_rows.last_windows(connection, model=model, most=NORM + 1))
    # A candidate that could not be told from the champion is no answer yet: the next one has more labels.
    answer = finished["run_id"] if finished and not (verdict and verdict["verdict"] == "wait") else None
    reference = Versions(settings, model).reference(version)
    usable, needed = _labels(settings, spec, reference, fresh=fresh, now=now)
    return History(
        version=version,
        windows=_windows(settings, spec, reference, seen, trained=answer),
        performance=_measured(measured[-1]) if measured else None,
        rejects=tuple(str(defect) for defect in rejects),
        new_labels=fresh,
        usable_labels=usable,
        needed_labels=needed,
        last_started=started["started_at"] if started else None,
        last_finished=finished["started_at"] if finished else None,
        open_decision=waiting["id"] if waiting else None,
        running=running["run_id"] if running else None,
        spent=past.spent,
        held_since=past.held_since,
        alerted_at=past.alerted_at,
        broken_alerted_at=past.broken_alerted_at,
    )


def _windows(
    settings: Settings, spec: ModelSpec, reference: Reference, seen: Sequence[RowMapping], *, trained: str | None
) -> tuple[Window, ...]:
    """Drift of the newest windows; those that look like the newest rows of the training `trained` are answered."""
    base: dict[str, np.ndarray] | None = None
    if trained and any(row["drifted"] for row in seen):
        try:
            rows = newest_rows(training_runs.load_run(settings, trained), spec=spec, settings=settings)
            base = counts_of(rows, reference)
        except (NotFound, IntegrityError) as gone:
            log.warning("every drift counts as new: %s", gone)
    return tuple(_window(settings, spec, reference, row, base) for row in seen)


def _window(
    settings: Settings, spec: ModelSpec, reference: Reference, row: RowMapping, base: dict[str, np.ndarray] | None
) -> Window:
    broken = tuple(str(Defect(**each)) for each in row["evidence"]["defects"])
    answered = False
    if row["drifted"] and base is not None:
        with session(settings, "pipeline") as connection:
            parts = window_rows.windows(
                connection, window_profile, model=spec.name, version=row["version"], after=row["window_start"],
                until=row["window_end"],
            )  # fmt: skip
        found = summed(parts)
        worst = worst_first(compare(reference.profile, found, policy=spec.monitoring.drift, base=base))
        still = defects(reference.profile, found, unseen=unseen(parts), drifted=frozenset(worst), base=base)
        answered = not worst and not still
    drifted = tuple(row["evidence"]["drifted"])
    return Window(row["window_start"], row["window_end"], row["row_count"], drifted, broken, answered)


def _measured(row: RowMapping) -> Measured:
    names = ("metric", "value", "low", "high", "judged", "lost", "measured_at")
    return Measured(end=row["window_end"], **{name: row[name] for name in names})


def _labels(settings: Settings, spec: ModelSpec, reference: Reference, *, fresh: int, now: datetime) -> tuple[int, int]:
    """How many labels a candidate could be compared with the champion on, and how many that takes.

    By time they are the mature ones of a test period that ends now, newer than all that the champion has learned. By
    entity the test entities are always the same; but without any new label a training would only repeat the last.
    """
    split = spec.training.split
    if isinstance(split, EntitySplit):
        return fresh, 1
    until = now - spec.label.maturity
    labels = labels_between(settings, spec.store, after=until - split.test, until=until, known_by=now)
    return int((labels["event_time"] > reference.fitted_until).sum()), spec.gates.min_rows


def _rejects(windows: Sequence[RowMapping]) -> list[Defect]:
    """Fields that the newest window's requests were refused for, more often than in the windows before."""
    by_end: dict[datetime, tuple[int, dict[str, int]]] = {}
    for row in windows:  # each version's row of a window tells the same rejects
        rows, _ = by_end.get(row["window_end"], (0, {}))
        by_end[row["window_end"]] = rows + row["row_count"], row["quality"].get("rejects", {})
    if not by_end:
        return []
    *before, (rows, refused) = [by_end[end] for end in sorted(by_end)]
    return [
        defect
        for name, count in refused.items()
        for defect in rejected(
            {name: count}, rows=rows, ordinary=median([_share(told.get(name, 0), n) for n, told in before] or [0.0])
        )
    ]


def _share(refused: int, rows: int) -> float:
    return refused / (refused + rows) if refused else 0.0


@dataclass(frozen=True, slots=True)
class _Past:
    """What earlier decisions mean for the next one; see `History`."""

    spent: tuple[datetime, ...]
    held_since: datetime | None
    alerted_at: datetime | None
    broken_alerted_at: datetime | None


def _past(decisions: Sequence[RowMapping]) -> _Past:
    """`decisions`: newest first."""
    held = list(takewhile(lambda row: row["action"] == "hold" and row["evidence"].get("reasons"), decisions))
    broken = list(takewhile(lambda row: row["cause"] == "broken_source", decisions))
    return _Past(
        spent=tuple(r["decided_at"] for r in decisions if r["action"] == "retrain" and r["cause"] in BUDGETED),
        held_since=held[-1]["decided_at"] if held else None,
        alerted_at=next((r["decided_at"] for r in held if r["alert"] and r["cause"] != "broken_source"), None),
        broken_alerted_at=next((r["decided_at"] for r in broken if r["alert"]), None),
    )
