"""Build the history that a decision to retrain is based on.

Pure: `evidence` reads the input, this module builds the history, `trigger` decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import RowMapping

from db.history.retrain_rows import RetrainRows
from pipelines.measures.defects import Defect, find_defects, find_rejections
from pipelines.measures.drift import measure_drift, worst_first
from pipelines.monitoring.counts import summed, unseen
from pipelines.monitoring.trigger import BUDGETED, Measured, MonitoringState, Window
from pipelines.spec import Drift, ModelSpec


@dataclass(frozen=True, slots=True)
class FilesAndLabels:
    """The input besides the rows: files of the version that serves and of a training, and labels of the store.

    profile: the version's profile.
    fitted_until: the newest event time that the version learned from (UTC).
    answer: counts of the newest rows of the training that answers drift, over the bins of `profile`. None if no
        training answers it, or its rows can't be read.
    new_labels: the number of labels since the last finished training.
    test_labels: the labels of a test period that ends now, with their event_time. None for a split by entity.
    """

    profile: Mapping[str, Any]
    fitted_until: datetime
    answer: Mapping[str, np.ndarray] | None
    new_labels: int
    test_labels: pd.DataFrame | None


def history_of(rows: RetrainRows, files: FilesAndLabels | None, *, spec: ModelSpec) -> MonitoringState:
    """Return the input of `trigger.decide_retraining`.

    files: None if no version serves. The history is then empty.
    """
    if rows.serving is None or files is None:
        return MonitoringState(version=None)
    usable, needed = _labels(files, spec)
    past = _past(rows.decided)
    return MonitoringState(
        version=int(rows.serving["version"]),
        windows=tuple(_window(row, rows.profiled_in(row), files, policy=spec.monitoring.drift) for row in rows.drift),
        performance=_measured(rows.performance) if rows.performance else None,
        rejects=tuple(str(defect) for defect in _rejects(rows.recent)),
        new_labels=files.new_labels,
        usable_labels=usable,
        needed_labels=needed,
        last_started=rows.started["started_at"] if rows.started else None,
        last_finished=rows.finished["started_at"] if rows.finished else None,
        open_decision=rows.waiting["id"] if rows.waiting else None,
        running=rows.running["run_id"] if rows.running else None,
        spent=past.spent,
        held_since=past.held_since,
        alerted_at=past.alerted_at,
        broken_alerted_at=past.broken_alerted_at,
    )


def answering(rows: RetrainRows) -> RowMapping | None:
    """Return the training that answers drift: drifted windows are compared with the newest rows of its snapshot.

    It is the last finished training. None if no window drifted, or the verdict on its candidate is to wait: the next
    candidate has more labels.
    """
    waits = rows.verdict is not None and rows.verdict["verdict"] == "wait"
    return rows.finished if not waits and any(row["drifted"] for row in rows.drift) else None


def _window(row: RowMapping, parts: Sequence[RowMapping], files: FilesAndLabels, *, policy: Drift) -> Window:
    """Build a window from a row of drift. It is answered if its `parts` are distributed like `files.answer`."""
    broken = tuple(str(Defect.from_json(defect)) for defect in row["evidence"]["defects"])
    answered = False
    if row["drifted"] and files.answer is not None:
        window_counts = summed(parts)
        worst = worst_first(measure_drift(files.profile, window_counts, policy=policy, base=files.answer))
        remaining = find_defects(
            files.profile, window_counts, unseen=unseen(parts), drifted=frozenset(worst), base=files.answer
        )
        answered = not worst and not remaining
    drifted = tuple(row["evidence"]["drifted"])
    return Window(row["window_start"], row["window_end"], row["row_count"], drifted, broken, answered)


def _measured(row: RowMapping) -> Measured:
    names = ("metric", "value", "low", "high", "judged", "lost", "measured_at")
    return Measured(end=row["window_end"], **{name: row[name] for name in names})


def _labels(files: FilesAndLabels, spec: ModelSpec) -> tuple[int, int]:
    """The number of labels on which a candidate could be compared with the champion, and the number needed.

    In a split by time, the labels of the test period that are newer than `fitted_until` count. In a split by entity the
    test entities are always the same. One new label is needed, because a training without one repeats the last.
    """
    if files.test_labels is None:
        return files.new_labels, 1
    return int((files.test_labels["event_time"] > files.fitted_until).sum()), spec.gates.min_rows


def _rejects(windows: Sequence[RowMapping]) -> list[Defect]:
    """The fields for which the newest window refused more requests than the windows before."""
    by_end: dict[datetime, tuple[int, dict[str, int]]] = {}
    for row in windows:  # all versions' rows of a window have the same rejects
        rows, _ = by_end.get(row["window_end"], (0, {}))
        by_end[row["window_end"]] = rows + row["row_count"], row["quality"].get("rejects", {})
    if not by_end:
        return []
    *before, (rows, newest_rejects) = [by_end[end] for end in sorted(by_end)]
    return [
        defect
        for name, count in newest_rejects.items()
        for defect in find_rejections(
            {name: count}, rows=rows, ordinary=median([_share(fields.get(name, 0), n) for n, fields in before] or [0.0])
        )
    ]


def _share(refused: int, rows: int) -> float:
    return refused / (refused + rows) if refused else 0.0


@dataclass(frozen=True, slots=True)
class _Past:
    """The facts of earlier decisions that the next one uses; see `MonitoringState`."""

    spent: tuple[datetime, ...]
    held_since: datetime | None
    alerted_at: datetime | None
    broken_alerted_at: datetime | None


def _past(decisions: Sequence[RowMapping]) -> _Past:
    """Collect the facts of `decisions`, newest first."""
    held_decisions = list(takewhile(lambda row: row["action"] == "hold" and row["evidence"].get("reasons"), decisions))
    broken_decisions = list(takewhile(lambda row: row["cause"] == "broken_source", decisions))
    return _Past(
        spent=tuple(r["decided_at"] for r in decisions if r["action"] == "retrain" and r["cause"] in BUDGETED),
        held_since=held_decisions[-1]["decided_at"] if held_decisions else None,
        alerted_at=next(
            (r["decided_at"] for r in held_decisions if r["alert"] and r["cause"] != "broken_source"), None
        ),
        broken_alerted_at=next((r["decided_at"] for r in broken_decisions if r["alert"]), None),
    )
