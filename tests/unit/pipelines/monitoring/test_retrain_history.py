"""The history that a decision to retrain is made on, by table: rows in, history out, no database."""

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
    """Rows of a model whose version 4 serves; only what a test is about is there."""
    return replace(RetrainRows(serving={"version": 4}), **fields)  # type: ignore[arg-type]


def counted(visits: list[int]) -> dict[str, np.ndarray]:
    return {"visits": np.array(visits), PREDICTION: np.array([300, 300, 400, 0, 0])}


def window(end: datetime, visits: list[int], *, version: int = 4, unseen: int = 0) -> dict[str, Any]:
    """A row of counts for the day before `end`."""
    counts = {name: each.tolist() for name, each in counted(visits).items()}
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


def answered(rows: RetrainRows, answer: list[int] | None) -> list[bool]:
    files = replace(FILES, answer=None if answer is None else counted(answer))
    return [window.answered for window in history_of(rows, files, spec=SPEC).windows]


def test_where_nothing_serves_nothing_is_known() -> None:
    assert history_of(RetrainRows(serving=None), None, spec=SPEC) == MonitoringState(version=None)


def test_a_version_that_nothing_happened_to_has_an_empty_history() -> None:
    assert history_of(rows_of(), FILES, spec=SPEC) == MonitoringState(
        version=4, new_labels=70, usable_labels=70, needed_labels=1
    )


def test_each_row_becomes_the_fact_that_it_tells() -> None:
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
        ({"finished": FINISHED, "drift": (drift(NOW, drifted=False),)}, False),  # there is nothing to answer
        ({"finished": FINISHED}, False),
        ({"drift": (drift(NOW),)}, False),  # nothing has been trained here
    ],
)
def test_the_last_training_answers_drift_unless_it_waits_for_labels(fields: dict[str, Any], answers: bool) -> None:
    assert answering(rows_of(**fields)) == (FINISHED if answers else None)


@pytest.mark.parametrize(
    ("seen", "answer", "expected"),
    [
        (RICHER, RICHER, True),
        (RICHER, AS_TRAINED, False),
        (AS_TRAINED, RICHER, False),  # the world went back to what it was before the training
        (RICHER, None, False),  # no training, or its rows can't be read
        (GONE, AS_TRAINED, False),
        (GONE, GONE, True),  # a training has learned that visits are missing
    ],
)
def test_a_drifted_window_is_answered_where_it_looks_like_the_newest_rows_of_the_training(
    seen: list[int], answer: list[int] | None, expected: bool
) -> None:
    assert answered(rows_of(drift=(drift(NOW),), profiled=(window(NOW, seen),)), answer) == [expected]


def test_a_window_that_did_not_drift_needs_no_answer() -> None:
    calm = drift(NOW, drifted=False)
    assert answered(rows_of(drift=(calm,), profiled=(window(NOW, RICHER),)), RICHER) == [False]


def test_a_defect_that_the_training_did_not_see_either_leaves_the_window_unanswered() -> None:
    assert answered(rows_of(drift=(drift(NOW),), profiled=(window(NOW, RICHER, unseen=900),)), RICHER) == [False]


def test_each_window_is_compared_by_the_counts_that_were_put_together_for_it() -> None:
    """The newest window is of two days, whose counts are RICHER together and by themselves are not."""
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
    assert answered(rows, RICHER) == [False, False, True]
    assert answered(rows, AS_TRAINED) == [True, False, False]


def test_a_window_says_what_drifted_and_what_is_broken() -> None:
    broken = {"feature": "visits", "kind": "missing", "found": 0.9, "ordinary": 0.0}
    (told,) = history_of(rows_of(drift=(drift(NOW, defects=(broken,)),)), FILES, spec=SPEC).windows
    assert (told.start, told.end, told.rows, told.drifted) == (NOW - DAY, NOW, 1000, ("visits",))
    assert told.defects == ("visits is missing in 90% of the rows, 0% is ordinary",)


def test_labels_of_the_test_period_count_where_the_champion_has_not_learned_from_them() -> None:
    times = [FILES.fitted_until - DAY, FILES.fitted_until, FILES.fitted_until + DAY, NOW]
    files = replace(FILES, test_labels=pd.DataFrame({"event_time": times}))
    history = history_of(rows_of(), files, spec=SPEC)
    assert (history.new_labels, history.usable_labels, history.needed_labels) == (70, 2, SPEC.gates.min_rows)


@pytest.mark.parametrize("new_labels", [0, 70])
def test_by_entity_any_new_label_is_enough(new_labels: int) -> None:
    history = history_of(rows_of(), replace(FILES, new_labels=new_labels), spec=SPEC)
    assert (history.usable_labels, history.needed_labels) == (new_labels, 1)


def refused(days_ago: int, count: int, *, rows: int = 100) -> dict[str, Any]:
    return {"window_end": NOW - days_ago * DAY, "row_count": rows, "quality": {"rejects": {"age": count}}}


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ((), ()),
        ((refused(0, 100),), ("age is refused in 50% of the rows, 0% is ordinary",)),
        ((refused(2, 0), refused(1, 0), refused(0, 100)), ("age is refused in 50% of the rows, 0% is ordinary",)),
        ((refused(2, 100), refused(1, 100), refused(0, 100)), ()),  # it is ordinary
        ((refused(2, 25), refused(1, 25), refused(0, 100)), ("age is refused in 50% of the rows, 20% is ordinary",)),
        ((refused(1, 100), refused(0, 0)), ()),  # it is over
        # The rows of two versions make one window.
        ((refused(1, 0), refused(0, 100), refused(0, 100)), ("age is refused in 33% of the rows, 0% is ordinary",)),
    ],
)
def test_requests_are_refused_too_often_where_it_is_more_than_in_the_windows_before(
    recent: tuple[dict[str, Any], ...], expected: tuple[str, ...]
) -> None:
    assert history_of(rows_of(recent=recent), FILES, spec=SPEC).rejects == expected


def decided(hours_ago: int, action: str, cause: str, *, alert: str | None = None, due: bool = True) -> dict[str, Any]:
    evidence = {"reasons": [{"cause": "drift", "text": "a test"}] if due else []}
    return {"decided_at": hours(hours_ago), "action": action, "cause": cause, "alert": alert, "evidence": evidence}


def hours(ago: int) -> datetime:
    return NOW - timedelta(hours=ago)


def test_the_budget_is_spent_by_trainings_for_drift_performance_and_new_labels() -> None:
    causes = ("drift", "age", "performance", "manual", "new_labels", "schedule")
    made = [decided(ago, "retrain", cause) for ago, cause in enumerate(causes)]
    history = history_of(rows_of(decided=(*made, decided(9, "hold", "drift"))), FILES, spec=SPEC)
    assert history.spent == (hours(0), hours(2), hours(4))


@pytest.mark.parametrize(
    ("made", "held_since"),
    [
        ((), None),
        ((decided(1, "hold", "budget"),), hours(1)),
        ((decided(1, "hold", "budget"), decided(2, "hold", "cooldown")), hours(2)),
        ((decided(1, "hold", "budget"), decided(2, "retrain", "drift"), decided(3, "hold", "cooldown")), hours(1)),
        ((decided(1, "hold", "budget"), decided(2, "hold", "no_reason", due=False)), hours(1)),
        ((decided(1, "hold", "no_reason", due=False), decided(2, "hold", "budget")), None),
        ((decided(1, "retrain", "drift"), decided(2, "hold", "budget")), None),
    ],
)
def test_a_reason_is_held_back_since_the_first_hold_in_a_row(made: Any, held_since: datetime | None) -> None:
    assert history_of(rows_of(decided=made), FILES, spec=SPEC).held_since == held_since


@pytest.mark.parametrize(
    ("made", "alerted_at", "broken_alerted_at"),
    [
        ((decided(1, "hold", "budget"), decided(2, "hold", "budget", alert="long due")), hours(2), None),
        (
            (decided(1, "hold", "budget", alert="again"), decided(2, "hold", "budget", alert="long due")),
            hours(1),
            None,
        ),
        # An alert about an earlier wait is no alert about this one.
        (
            (decided(1, "hold", "budget"), decided(2, "retrain", "drift"), decided(3, "hold", "budget", alert="old")),
            None,
            None,
        ),
        ((decided(1, "hold", "broken_source"), decided(2, "hold", "broken_source", alert="broken")), None, hours(2)),
        ((decided(1, "hold", "broken_source", alert="broken", due=False),), None, hours(1)),
        # The source was mended in between, so it is news that it broke.
        ((decided(1, "hold", "budget"), decided(2, "hold", "broken_source", alert="broken")), None, None),
        ((decided(1, "hold", "broken_source"), decided(2, "hold", "budget", alert="long due")), hours(2), None),
    ],
)
def test_an_alert_counts_as_long_as_what_it_was_about_lasts(
    made: Any, alerted_at: datetime | None, broken_alerted_at: datetime | None
) -> None:
    history = history_of(rows_of(decided=made), FILES, spec=SPEC)
    assert (history.alerted_at, history.broken_alerted_at) == (alerted_at, broken_alerted_at)
