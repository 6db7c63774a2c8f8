"""The history that a decision to retrain is made on, made from all that was read for it.

Pure: `evidence` reads, this makes the history, `trigger` decides.
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
from pipelines.measures.defects import Defect, defects, rejected
from pipelines.measures.drift import measure_drift, worst_first
from pipelines.monitoring.counts import summed, unseen
from pipelines.monitoring.trigger import BUDGETED, Measured, MonitoringState, Window
from pipelines.spec import Drift, ModelSpec


@dataclass(frozen=True, slots=True)
class FilesAndLabels:
    """What is read beside the rows: files of the version that serves and of a training, and labels from the store.

    profile: of the version. fitted_until: the newest event time that it learned from. answer: counts of the newest rows
    of the training that answers drift, over the bins of `profile`; None where none does, or its rows can't be read.
    new_labels: since the last training that finished. test_labels: those of a test period that ends now, with their
    event_time; None where a test is by entity.
    """

    profile: Mapping[str, Any]
    fitted_until: datetime
    answer: Mapping[str, np.ndarray] | None
    new_labels: int
    test_labels: pd.DataFrame | None


def history_of(rows: RetrainRows, files: FilesAndLabels | None, *, spec: ModelSpec) -> MonitoringState:
    """What `trigger.decide` goes by. `files` is None where nothing serves; nothing else is then known, either."""
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
    """The training that the windows that drifted are compared with: the last that finished. None where none drifted.

    A candidate that could not be told from the champion is no answer yet: the next one has more labels.
    """
    waits = rows.verdict is not None and rows.verdict["verdict"] == "wait"
    return rows.finished if not waits and any(row["drifted"] for row in rows.drift) else None


def _window(row: RowMapping, parts: Sequence[RowMapping], files: FilesAndLabels, *, policy: Drift) -> Window:
    """A row of drift; it is answered where its `parts` look like the newest rows of the training that answers."""
    broken = tuple(str(Defect(**each)) for each in row["evidence"]["defects"])
    answered = False
    if row["drifted"] and files.answer is not None:
        found = summed(parts)
        worst = worst_first(measure_drift(files.profile, found, policy=policy, base=files.answer))
        still = defects(files.profile, found, unseen=unseen(parts), drifted=frozenset(worst), base=files.answer)
        answered = not worst and not still
    drifted = tuple(row["evidence"]["drifted"])
    return Window(row["window_start"], row["window_end"], row["row_count"], drifted, broken, answered)


def _measured(row: RowMapping) -> Measured:
    names = ("metric", "value", "low", "high", "judged", "lost", "measured_at")
    return Measured(end=row["window_end"], **{name: row[name] for name in names})


def _labels(files: FilesAndLabels, spec: ModelSpec) -> tuple[int, int]:
    """How many labels a candidate could be compared with the champion on, and how many that takes.

    By time they are those of the test period that are newer than all that the champion has learned. By entity the test
    entities are always the same; but without any new label a training would only repeat the last.
    """
    if files.test_labels is None:
        return files.new_labels, 1
    return int((files.test_labels["event_time"] > files.fitted_until).sum()), spec.gates.min_rows


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
