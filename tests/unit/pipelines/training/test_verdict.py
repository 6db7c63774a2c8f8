"""The verdict on a candidate, for evaluations of many kinds."""

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


def estimate(value: float, standard_error: float = 0.002) -> Estimate:
    """An estimate with an interval that leaves out 5% on each side."""
    return Estimate(value, value - 1.645 * standard_error, value + 1.645 * standard_error, standard_error)


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


def passed(results: GateResults, name: str) -> bool | None:
    return next(gate.passed for gate in results.gates if gate.name == name)


def test_a_first_candidate_is_promoted_if_it_reaches_the_minimum() -> None:
    assert decide_promotion(evaluation(), GATES).verdict == "promote"
    results = decide_promotion(evaluation(candidate={"macro_f1": estimate(0.59)}), GATES)
    assert results.verdict == "reject"
    assert "0.5900" in results.reason


@pytest.mark.parametrize(
    ("better_by", "verdict"),
    [
        (estimate(0.05), "promote"),  # better
        (estimate(0.0), "promote"),  # equal, and certainly not worse by more than the margin
        (estimate(-0.005, 0.004), "reject"),  # may be worse by more than the margin, although precise
        (estimate(-0.05), "reject"),  # worse
        (estimate(0.0, 0.02), "wait"),  # imprecise: the interval is wider than the margin
        (estimate(0.1, 0.02), "promote"),  # imprecise, but certainly not worse
        (estimate(-0.1, 0.02), "reject"),  # imprecise, but certainly worse
    ],
)
def test_the_verdict_depends_on_the_difference_from_the_champion_and_its_precision(
    better_by: Estimate, verdict: str
) -> None:
    assert decide_promotion(evaluation(better_by), GATES).verdict == verdict


def test_an_equal_candidate_is_rejected_if_a_better_one_is_required() -> None:
    policy = GATES.model_copy(update={"champion": GATES.champion.model_copy(update={"require": "better"})})
    assert decide_promotion(evaluation(estimate(0.0)), policy).verdict == "reject"
    assert decide_promotion(evaluation(estimate(0.01)), policy).verdict == "promote"


def test_the_verdict_is_to_wait_if_too_few_rows_are_new_to_the_champion() -> None:
    results = decide_promotion(evaluation(estimate(0.3), compared_rows=120), GATES)
    assert results.verdict == "wait"
    assert results.reason == "waiting for 380 more labels newer than what version 1 has learned from"


def test_the_verdict_is_to_wait_if_no_row_is_new_to_the_champion() -> None:
    assert decide_promotion(evaluation(None, champion_version=1, compared_rows=0), GATES).verdict == "wait"


def test_the_verdict_is_to_wait_if_a_first_candidate_has_too_few_test_rows() -> None:
    assert decide_promotion(evaluation(rows=499), GATES).verdict == "wait"


def test_a_candidate_is_rejected_if_a_slice_is_significantly_worse_by_more_than_the_margin() -> None:
    imprecise = SliceDifference("town", "Bern", 200, estimate(-0.05, 0.03))
    worse = SliceDifference("town", "Basel", 200, estimate(-0.10, 0.01))
    results = decide_promotion(evaluation(estimate(0.05), slices=(imprecise,)), GATES)
    assert results.verdict == "promote"
    results = decide_promotion(evaluation(estimate(0.05), slices=(imprecise, worse)), GATES)
    assert results.verdict == "reject"
    assert passed(results, "slice.town.Basel") is False
    assert "town = Basel" in results.reason


def test_a_margin_may_be_a_share_of_the_champions_metric() -> None:
    def verdict_at(better_by: float, margin: object) -> str:
        policy = Gates.model_validate({"champion": {"metric": "rmse", "margin": margin}})
        metrics = {"rmse": estimate(2_000.0, 10.0)}
        return decide_promotion(
            evaluation(estimate(better_by, 10.0), candidate=metrics, champion=metrics), policy
        ).verdict

    assert verdict_at(-20.0, "3%") == verdict_at(-20.0, 60) == "promote"
    assert verdict_at(-50.0, "3%") == verdict_at(-50.0, 60) == "reject"
    assert verdict_at(0.0, "0.5%") == "wait"


def test_the_reason_to_wait_asks_for_labels_of_any_time_if_all_test_rows_are_new_to_the_champion() -> None:
    results = decide_promotion(evaluation(estimate(0.3), rows=120, compared_rows=120), GATES)
    assert results.reason == "waiting for 380 more labels"


def test_an_evaluation_is_equal_after_it_was_written_as_json_and_read() -> None:
    import json
    from dataclasses import asdict

    original = evaluation(estimate(0.05), slices=(SliceDifference("town", "Bern", 200, estimate(0.1)),))
    assert evaluation_from_json(json.loads(json.dumps(asdict(original)))) == original
