"""The history behind a decision to retrain, by table: rows in, history out, no database."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from db.history.retrain_rows import RetrainRows
from pipelines.measures.drift import PREDICTION
from pipelines.monitoring.retrain_history import FilesAndLabels, answering, history_of
from pipelines.monitoring.trigger import Measured, MonitoringState
from pipelines.spec import ModelSpec

NOW = datetime(2026, 9, 30, 12)
DAY = timedelta(days=1)
SPEC = ModelSpec.parse(
    {
        "name": "shops",
        "task": "multiclass",
        "entity": "shop",
        "source": {"event_time": "day"},
        "label": {"column": "size", "classes": ["S", "M", "L"]},
        "features": {"columns": {"visits": {"type": "numeric"}}},
    },
    file="shops.yaml",
)
PROFILE: dict[str, Any] = {
    "features": {
        "visits": {"kind": "numeric", "edges": [10.0, 20.0], "counts": [400, 400, 200], "missing": 0, "psi_95": 0.0}
    },
    "prediction": {"kind": "categorical", "categories": {"S": 300, "M": 300, "L": 400, "(other)": 0}, "missing": 0},
}
AS_TRAINED, RICHER, GONE = [400, 400, 200, 0], [100, 200, 700, 0], [40, 40, 20, 900]  # counts of visits
FILES = FilesAndLabels(profile=PROFILE, fitted_until=NOW - 9 * DAY, answer=None, new_labels=70, test_labels=None)
FINISHED = {"run_id": "shops_training/2", "started_at": NOW - 3 * DAY, "commit_seq": 5}


def rows_of(**fields: Any) -> RetrainRows:
    """The rows of a model whose version 4 serves. Only the fields of a test are set."""
    return replace(RetrainRows(serving={"version": 4}), **fields)  # type: ignore[arg-type]


def counts_of(visits: list[int]) -> dict[str, np.ndarray]:
    return {"visits": np.array(visits), PREDICTION: np.array([300, 300, 400, 0, 0])}


def window(end: datetime, visits: list[int], *, version: int = 4, unseen: int = 0) -> dict[str, Any]:
    """A row of counts for the day before `end`."""
    counts = {name: each.tolist() for name, each in counts_of(visits).items()}
    quality = {"unseen": {"visits": unseen}}
    return {"window_end": end, "version": version, "row_count": sum(visits), "counts": counts, "quality": quality}


def drift(end: datetime, *, drifted: bool = True, days: int = 1, defects: tuple[dict[str, Any], ...] = ()) -> Any:
    evidence = {"drifted": ["visits"] if drifted else [], "defects": list(defects)}
    return {
        "window_start": end - days * DAY,
        "window_end": end,
        "row_count": 1000,
        "drifted": drifted,
        "evidence": evidence,
    }


def answers_of(rows: RetrainRows, answer: list[int] | None) -> list[bool]:
    files = replace(FILES, answer=None if answer is None else counts_of(answer))
    return [window.answered for window in history_of(rows, files, spec=SPEC).windows]


def test_without_a_champion_the_history_is_empty() -> None:
    assert history_of(RetrainRows(serving=None), None, spec=SPEC) == MonitoringState(version=None)


def test_a_version_without_events_has_an_empty_history() -> None:
    assert history_of(rows_of(), FILES, spec=SPEC) == MonitoringState(
        version=4, new_labels=70, usable_labels=70, needed_labels=1
    )


def test_each_row_becomes_its_fact_in_the_history() -> None:
    facts: dict[str, Any] = {"metric": "macro_f1", "value": 0.6, "low": 0.5, "high": 0.7, "judged": 0.8, "lost": True}
    rows = rows_of(
        finished=FINISHED,
        started={"run_id": "shops_training/3", "started_at": NOW - DAY},
        running={"run_id": "shops_training/3", "started_at": NOW - DAY},
        waiting={"id": 12},
        performance={**facts, "window_end": NOW - 2 * DAY, "measured_at": NOW - DAY, "label_count": 300},
    )
    history = history_of(rows, FILES, spec=SPEC)
    assert (history.last_finished, history.last_started) == (NOW - 3 * DAY, NOW - DAY)
    assert (history.running, history.open_decision) == ("shops_training/3", 12)
    assert history.performance == Measured(end=NOW - 2 * DAY, measured_at=NOW - DAY, **facts)


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"finished": FINISHED, "drift": (drift(NOW),)}, True),
        ({"finished": FINISHED, "drift": (drift(NOW),), "verdict": {"verdict": "promote"}}, True),
        ({"finished": FINISHED, "drift": (drift(NOW),), "verdict": {"verdict": "reject"}}, True),
        ({"finished": FINISHED, "drift": (drift(NOW),), "verdict": {"verdict": "wait"}}, False),
        ({"finished": FINISHED, "drift": (drift(NOW - DAY), drift(NOW, drifted=False))}, True),
        ({"finished": FINISHED, "drift": (drift(NOW, drifted=False),)}, False),  # no drift to answer
        ({"finished": FINISHED}, False),
        ({"drift": (drift(NOW),)}, False),  # no training has finished
    ],
)
def test_the_last_training_answers_drift_unless_it_waits_for_labels(fields: dict[str, Any], answers: bool) -> None:
    assert answering(rows_of(**fields)) == (FINISHED if answers else None)


@pytest.mark.parametrize(
    ("visits", "answer", "expected"),
    [
        (RICHER, RICHER, True),
        (RICHER, AS_TRAINED, False),
        (AS_TRAINED, RICHER, False),  # the data is again as it was before the training
        (RICHER, None, False),  # no training, or its rows can't be read
        (GONE, AS_TRAINED, False),
        (GONE, GONE, True),  # a training has learned that visits are missing
    ],
)
def test_a_drifted_window_is_answered_if_it_resembles_the_newest_rows_of_the_training(
    visits: list[int], answer: list[int] | None, expected: bool
) -> None:
    assert answers_of(rows_of(drift=(drift(NOW),), profiled=(window(NOW, visits),)), answer) == [expected]


def test_a_window_that_did_not_drift_needs_no_answer() -> None:
    calm = drift(NOW, drifted=False)
    assert answers_of(rows_of(drift=(calm,), profiled=(window(NOW, RICHER),)), RICHER) == [False]


def test_a_defect_that_the_training_did_not_see_either_leaves_the_window_unanswered() -> None:
    assert answers_of(rows_of(drift=(drift(NOW),), profiled=(window(NOW, RICHER, unseen=900),)), RICHER) == [False]


def test_each_window_is_compared_by_the_counts_that_were_put_together_for_it() -> None:
    """The newest window has two days. Their counts are RICHER together, but neither day alone is."""
    halves = ([100, 0, 0, 0], [0, 200, 700, 0])
    rows = rows_of(
        drift=(drift(NOW - 3 * DAY), drift(NOW - 2 * DAY, drifted=False), drift(NOW, days=2)),
        profiled=(
            window(NOW - 3 * DAY, AS_TRAINED),
            window(NOW - 2 * DAY, AS_TRAINED),
            window(NOW - DAY, halves[0]),
            window(NOW, halves[1]),
        ),
    )
    assert answers_of(rows, RICHER) == [False, False, True]
    assert answers_of(rows, AS_TRAINED) == [True, False, False]


def test_a_window_names_its_drifted_features_and_its_defects() -> None:
    broken = {"feature": "visits", "kind": "missing", "found": 0.9, "ordinary": 0.0}
    (latest,) = history_of(rows_of(drift=(drift(NOW, defects=(broken,)),)), FILES, spec=SPEC).windows
    assert (latest.start, latest.end, latest.rows, latest.drifted) == (NOW - DAY, NOW, 1000, ("visits",))
    assert latest.defects == ("visits is missing in 90% of the rows, 0% is ordinary",)


def test_labels_of_the_test_period_count_if_the_champion_has_not_learned_from_them() -> None:
    times = [FILES.fitted_until - DAY, FILES.fitted_until, FILES.fitted_until + DAY, NOW]
    files = replace(FILES, test_labels=pd.DataFrame({"event_time": times}))
    history = history_of(rows_of(), files, spec=SPEC)
    assert (history.new_labels, history.usable_labels, history.needed_labels) == (70, 2, SPEC.gates.min_rows)


@pytest.mark.parametrize("new_labels", [0, 70])
def test_by_entity_any_new_label_is_enough(new_labels: int) -> None:
    history = history_of(rows_of(), replace(FILES, new_labels=new_labels), spec=SPEC)
    assert (history.usable_labels, history.needed_labels) == (new_labels, 1)


def rejects(days_ago: int, count: int, *, rows: int = 100) -> dict[str, Any]:
    return {"window_end": NOW - days_ago * DAY, "row_count": rows, "quality": {"rejects": {"age": count}}}


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ((), ()),
        ((rejects(0, 100),), ("age is refused in 50% of the rows, 0% is ordinary",)),
        ((rejects(2, 0), rejects(1, 0), rejects(0, 100)), ("age is refused in 50% of the rows, 0% is ordinary",)),
        ((rejects(2, 100), rejects(1, 100), rejects(0, 100)), ()),  # the share is usual
        ((rejects(2, 25), rejects(1, 25), rejects(0, 100)), ("age is refused in 50% of the rows, 20% is ordinary",)),
        ((rejects(1, 100), rejects(0, 0)), ()),  # the rejects have ended
        # The rows of two versions make one window.
        ((rejects(1, 0), rejects(0, 100), rejects(0, 100)), ("age is refused in 33% of the rows, 0% is ordinary",)),
    ],
)
def test_rejects_are_reported_if_there_are_more_than_in_the_windows_before(
    recent: tuple[dict[str, Any], ...], expected: tuple[str, ...]
) -> None:
    assert history_of(rows_of(recent=recent), FILES, spec=SPEC).rejects == expected


def decision(hours_ago: int, action: str, cause: str, *, alert: str | None = None, due: bool = True) -> dict[str, Any]:
    evidence = {"reasons": [{"cause": "drift", "text": "a test"}] if due else []}
    return {"decided_at": hours(hours_ago), "action": action, "cause": cause, "alert": alert, "evidence": evidence}


def hours(ago: int) -> datetime:
    return NOW - timedelta(hours=ago)


def test_the_budget_is_spent_by_trainings_for_drift_performance_and_new_labels() -> None:
    causes = ("drift", "age", "performance", "manual", "new_labels", "schedule")
    decisions = [decision(ago, "retrain", cause) for ago, cause in enumerate(causes)]
    history = history_of(rows_of(decided=(*decisions, decision(9, "hold", "drift"))), FILES, spec=SPEC)
    assert history.spent == (hours(0), hours(2), hours(4))


@pytest.mark.parametrize(
    ("decisions", "held_since"),
    [
        ((), None),
        ((decision(1, "hold", "budget"),), hours(1)),
        ((decision(1, "hold", "budget"), decision(2, "hold", "cooldown")), hours(2)),
        ((decision(1, "hold", "budget"), decision(2, "retrain", "drift"), decision(3, "hold", "cooldown")), hours(1)),
        ((decision(1, "hold", "budget"), decision(2, "hold", "no_reason", due=False)), hours(1)),
        ((decision(1, "hold", "no_reason", due=False), decision(2, "hold", "budget")), None),
        ((decision(1, "retrain", "drift"), decision(2, "hold", "budget")), None),
    ],
)
def test_a_reason_is_held_back_since_the_first_hold_in_a_row(decisions: Any, held_since: datetime | None) -> None:
    assert history_of(rows_of(decided=decisions), FILES, spec=SPEC).held_since == held_since


@pytest.mark.parametrize(
    ("decisions", "alerted_at", "broken_alerted_at"),
    [
        ((decision(1, "hold", "budget"), decision(2, "hold", "budget", alert="long due")), hours(2), None),
        (
            (decision(1, "hold", "budget", alert="again"), decision(2, "hold", "budget", alert="long due")),
            hours(1),
            None,
        ),
        # An alert about an earlier wait does not count for this wait.
        (
            (
                decision(1, "hold", "budget"),
                decision(2, "retrain", "drift"),
                decision(3, "hold", "budget", alert="old"),
            ),
            None,
            None,
        ),
        ((decision(1, "hold", "broken_source"), decision(2, "hold", "broken_source", alert="broken")), None, hours(2)),
        ((decision(1, "hold", "broken_source", alert="broken", due=False),), None, hours(1)),
        # The source was repaired in between, so this is a new defect.
        ((decision(1, "hold", "budget"), decision(2, "hold", "broken_source", alert="broken")), None, None),
        ((decision(1, "hold", "broken_source"), decision(2, "hold", "budget", alert="long due")), hours(2), None),
    ],
)
def test_an_alert_counts_as_long_as_its_subject_lasts(
    decisions: Any, alerted_at: datetime | None, broken_alerted_at: datetime | None
) -> None:
    history = history_of(rows_of(decided=decisions), FILES, spec=SPEC)
    assert (history.alerted_at, history.broken_alerted_at) == (alerted_at, broken_alerted_at)
