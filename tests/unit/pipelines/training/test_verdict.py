"""The verdict on a candidate, by table."""

from dataclasses import replace

import pytest

from pipelines.spec import Gates
from pipelines.training.evaluate import Estimate, Evaluation, SliceDifference, evaluation_from_json
from pipelines.training.verdict import GateResults, decide_promotion

GATES = Gates.model_validate(
    {
        "minimum": {"macro_f1": 0.6},
        "champion": {"metric": "macro_f1", "margin": 0.01},
        "slices": {"columns": ["town"], "margin": 0.03},
        "min_rows": 500,
    }
)


def estimate(value: float, error: float = 0.002) -> Estimate:
    return Estimate(value, value - 1.645 * error, value + 1.645 * error, error)


def evaluation(better_by: Estimate | None = None, **changes: object) -> Evaluation:
    default = Evaluation(
        candidate_version=2,
        champion_version=1 if better_by else None,
        rows=5000,
        compared_rows=5000 if better_by else 0,
        candidate={"macro_f1": estimate(0.7)},
        champion={"macro_f1": estimate(0.7)} if better_by else {},
        better_by=better_by,
        slices=(),
    )
    return replace(default, **changes)  # type: ignore[arg-type]


def gate(decision: GateResults, name: str) -> bool | None:
    return next(gate.passed for gate in decision.gates if gate.name == name)


def test_the_first_candidate_needs_the_minimum_only() -> None:
    assert decide_promotion(evaluation(), GATES).verdict == "promote"
    decision = decide_promotion(evaluation(candidate={"macro_f1": estimate(0.59)}), GATES)
    assert decision.verdict == "reject"
    assert "0.5900" in decision.reason


@pytest.mark.parametrize(
    ("better_by", "verdict"),
    [
        (estimate(0.05), "promote"),  # better
        (estimate(0.0), "promote"),  # equal, and surely not worse by more than the margin
        (estimate(-0.005, 0.004), "reject"),  # may be worse by more than the margin, although precise
        (estimate(-0.05), "reject"),  # worse
        (estimate(0.0, 0.02), "wait"),  # proves nothing: the interval is wider than the margin
        (estimate(0.1, 0.02), "promote"),  # imprecise, but surely not worse
        (estimate(-0.1, 0.02), "reject"),  # imprecise, but surely worse
    ],
)
def test_a_candidate_must_be_shown_not_to_be_worse(better_by: Estimate, verdict: str) -> None:
    assert decide_promotion(evaluation(better_by), GATES).verdict == verdict


def test_if_better_is_required_an_equal_candidate_is_rejected() -> None:
    policy = GATES.model_copy(update={"champion": GATES.champion.model_copy(update={"require": "better"})})
    assert decide_promotion(evaluation(estimate(0.0)), policy).verdict == "reject"
    assert decide_promotion(evaluation(estimate(0.01)), policy).verdict == "promote"


def test_too_few_rows_newer_than_the_champion_wait_and_say_how_many_are_missing() -> None:
    decision = decide_promotion(evaluation(estimate(0.3), compared_rows=120), GATES)
    assert decision.verdict == "wait"
    assert decision.reason == "waiting for 380 more labels newer than what version 1 has learned from"


def test_no_shared_rows_at_all_wait_rather_than_promote() -> None:
    assert decide_promotion(evaluation(None, champion_version=1, compared_rows=0), GATES).verdict == "wait"


def test_too_few_test_rows_for_a_first_candidate_wait() -> None:
    assert decide_promotion(evaluation(rows=499), GATES).verdict == "wait"


def test_a_slice_is_rejected_only_if_it_is_significantly_worse_than_the_margin() -> None:
    noisy = SliceDifference("town", "Bern", 200, estimate(-0.05, 0.03))
    worse = SliceDifference("town", "Basel", 200, estimate(-0.10, 0.01))
    decision = decide_promotion(evaluation(estimate(0.05), slices=(noisy,)), GATES)
    assert decision.verdict == "promote"
    decision = decide_promotion(evaluation(estimate(0.05), slices=(noisy, worse)), GATES)
    assert decision.verdict == "reject"
    assert gate(decision, "slice.town.Basel") is False
    assert "town = Basel" in decision.reason


def test_a_margin_may_be_a_share_of_the_champions_value() -> None:
    def verdict_at(better_by: float, margin: object) -> str:
        policy = Gates.model_validate({"champion": {"metric": "rmse", "margin": margin}})
        metrics = {"rmse": estimate(2_000.0, 10.0)}
        return decide_promotion(
            evaluation(estimate(better_by, 10.0), candidate=metrics, champion=metrics), policy
        ).verdict

    assert verdict_at(-20.0, "3%") == verdict_at(-20.0, 60) == "promote"
    assert verdict_at(-50.0, "3%") == verdict_at(-50.0, 60) == "reject"
    assert verdict_at(0.0, "0.5%") == "wait"


def test_a_split_by_entity_waits_for_more_labels_and_not_for_newer_ones() -> None:
    decision = decide_promotion(evaluation(estimate(0.3), rows=120, compared_rows=120), GATES)
    assert decision.reason == "waiting for 380 more labels"


def test_an_evaluation_survives_being_written_and_read() -> None:
    import json
    from dataclasses import asdict

    original = evaluation(estimate(0.05), slices=(SliceDifference("town", "Bern", 200, estimate(0.1)),))
    assert evaluation_from_json(json.loads(json.dumps(asdict(original)))) == original
