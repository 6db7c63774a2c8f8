"""The decision to retrain, by table."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from pipelines.monitoring.trigger import Measured, MonitoringState, Policy, Window, decide_retraining
from pipelines.spec import Drift, Retrain

NOW = datetime(2026, 9, 30, 12)
DAY = timedelta(days=1)
POLICY = Policy(Drift(), Retrain(new_labels=5000, max_age=30 * DAY, cooldown=timedelta(hours=6), per_week=3))
CALM = MonitoringState(
    version=4, usable_labels=800, needed_labels=500, last_started=NOW - 2 * DAY, last_finished=NOW - 2 * DAY
)


def windows(pattern: str) -> tuple[Window, ...]:
    """One window a letter, the latest last: `.` without drift, `d` drifted, `a` drifted and answered, `b` broken."""
    first = NOW - len(pattern) * DAY
    return tuple(
        Window(
            first + number * DAY,
            first + (number + 1) * DAY,
            1000,
            drifted=("income", "debt") if letter in "dab" else (),
            defects=("income is missing in 90% of the rows",) if letter == "b" else (),
            answered=letter == "a",
        )
        for number, letter in enumerate(pattern)
    )


def measurement(**changes: object) -> Measured:
    default = Measured(NOW - DAY, "macro_f1", 0.6, 0.58, 0.62, 0.75, lost=True, measured_at=NOW - DAY / 2)
    return replace(default, **changes)  # type: ignore[arg-type]


def test_without_a_reason_the_action_is_hold_and_the_text_says_what_was_examined() -> None:
    decision = decide_retraining(replace(CALM, windows=windows("...")), POLICY, NOW)
    assert (decision.action, decision.cause, decision.alert) == ("hold", "no_reason", None)
    assert "drift in 0 of the last 3 windows" in decision.reason


def test_before_the_first_deployment_there_is_nothing_to_decide() -> None:
    assert decide_retraining(MonitoringState(version=None), POLICY, NOW).cause == "no_version"


@pytest.mark.parametrize(
    ("pattern", "due"),
    [
        ("..d", False),  # one window may be chance
        (".dd", True),
        ("d.d", True),
        ("dd.", False),  # the drift has ended
        ("d..d", False),  # the first window is too old
        ("dd", True),
        ("d", False),
        ("ddd", True),
        ("aaa", False),  # a training has answered it
        ("aad", False),  # one window drifts despite the answer, a second one must agree
        ("add", True),
        ("dda", False),
        ("", False),
    ],
)
def test_drift_is_a_reason_if_enough_of_the_last_windows_drifted_including_the_latest(pattern: str, due: bool) -> None:
    decision = decide_retraining(replace(CALM, windows=windows(pattern)), POLICY, NOW)
    assert decision.action == ("retrain" if due else "hold")
    if due:
        assert decision.cause == "drift"
        assert "income, debt drifted from version 4's training" in decision.reason


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"performance": measurement()}, "performance"),
        ({"performance": measurement(lost=False)}, None),
        ({"performance": measurement(measured_at=NOW - 3 * DAY)}, None),  # a training began after it
        ({"new_labels": 5000}, "new_labels"),
        ({"new_labels": 4999}, None),
        ({"last_finished": NOW - 31 * DAY}, "age"),
        ({"last_finished": NOW - 30 * DAY}, None),
        ({"last_finished": None}, None),  # without evidence there is no reason
        ({"new_labels": 9000, "performance": measurement()}, "performance"),  # the most important reason is the cause
    ],
)
def test_lost_accuracy_new_labels_and_age_are_reasons(changes: dict[str, object], cause: str | None) -> None:
    decision = decide_retraining(replace(CALM, **changes), POLICY, NOW)  # type: ignore[arg-type]
    assert (decision.action, decision.cause) == (("retrain", cause) if cause else ("hold", "no_reason"))


def test_only_reasons_that_the_model_file_names_count() -> None:
    policy = replace(POLICY, retrain=POLICY.retrain.model_copy(update={"on": ("age",)}))
    assert decide_retraining(replace(CALM, windows=windows("ddd")), policy, NOW).action == "hold"


DUE = replace(CALM, windows=windows("ddd"))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"last_started": NOW - timedelta(hours=5)}, "cooldown"),
        ({"last_started": NOW - timedelta(hours=6)}, None),
        ({"spent": (NOW - DAY, NOW - 2 * DAY, NOW - 3 * DAY)}, "budget"),
        ({"spent": (NOW - DAY, NOW - 2 * DAY, NOW - 8 * DAY)}, None),
        ({"usable_labels": 499}, "too_few_labels"),
        ({"open_decision": 7}, "under_way"),
        ({"running": "credit_score_training/manual"}, "under_way"),
        ({"windows": windows("ddb")}, "broken_source"),
        ({"rejects": ("age is refused in 60% of the rows",)}, "broken_source"),
    ],
)
def test_a_block_holds_a_reason_back_and_is_named(changes: dict[str, object], cause: str | None) -> None:
    decision = decide_retraining(replace(DUE, **changes), POLICY, NOW)  # type: ignore[arg-type]
    assert (decision.action, decision.cause) == (("hold", cause) if cause else ("retrain", "drift"))


def test_the_budget_does_not_count_age() -> None:
    spent = (NOW - DAY, NOW - 2 * DAY, NOW - 3 * DAY)
    assert decide_retraining(replace(CALM, spent=spent, last_finished=NOW - 40 * DAY), POLICY, NOW).cause == "age"


def test_a_broken_window_is_no_breach_even_after_the_source_was_repaired() -> None:
    assert decide_retraining(replace(CALM, windows=windows("bbd")), POLICY, NOW).cause == "no_reason"
    assert decide_retraining(replace(CALM, windows=windows("bdd")), POLICY, NOW).cause == "drift"


def test_a_broken_source_alerts_at_once_and_again_only_after_the_longest_wait() -> None:
    broken = replace(CALM, windows=windows("..b"))
    first = decide_retraining(broken, POLICY, NOW)
    assert first.alert
    assert "income is missing in 90% of the rows" in first.alert
    assert decide_retraining(replace(broken, broken_alerted_at=NOW - DAY), POLICY, NOW).alert is None
    assert decide_retraining(replace(broken, broken_alerted_at=NOW - 7 * DAY), POLICY, NOW).alert


@pytest.mark.parametrize(
    "block",
    [
        {"last_started": NOW},
        {"spent": (NOW, NOW, NOW)},
        {"usable_labels": 0},
        {"open_decision": 7},
        {"running": "credit_score_training/manual"},
    ],
)
def test_every_block_alerts_once_it_has_lasted_too_long(block: dict[str, object]) -> None:
    state = replace(DUE, **block, held_since=NOW - 7 * DAY)  # type: ignore[arg-type]
    alert = decide_retraining(state, POLICY, NOW).alert
    assert alert
    assert alert.startswith("a training has been due for 7d: income, debt drifted")
    assert decide_retraining(replace(state, held_since=NOW - 6 * DAY), POLICY, NOW).alert is None
    assert decide_retraining(replace(state, alerted_at=NOW - DAY), POLICY, NOW).alert is None


def test_a_training_that_was_not_better_starts_no_backoff() -> None:
    """The outcome of the last training is not an input of the decision."""
    assert "verdict" not in MonitoringState.__dataclass_fields__
    assert decide_retraining(replace(DUE, last_started=NOW - timedelta(hours=7)), POLICY, NOW).action == "retrain"


def test_the_evidence_holds_every_reason_and_every_block() -> None:
    decision = decide_retraining(replace(DUE, new_labels=6000, open_decision=7, usable_labels=0), POLICY, NOW)
    assert [note["cause"] for note in decision.evidence["reasons"]] == ["drift", "new_labels"]
    assert [note["cause"] for note in decision.evidence["blocks"]] == ["under_way", "too_few_labels"]
