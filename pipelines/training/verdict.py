"""Decide whether a candidate may serve. `decide_promotion` is pure. `record_verdict` stores the verdict."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import NormalDist
from typing import Literal

from db import history
from db.history import decisions
from db.session import session
from db.tables import promotion_decision
from pipelines.measures.metrics import HIGHER_IS_BETTER
from pipelines.runs.training_runs import Run
from pipelines.spec import Gates, margin_at
from pipelines.training.evaluate import Evaluation
from utils.settings import Settings

Verdict = Literal["promote", "reject", "wait"]
NEEDED_PRECISION = 2.5  # least ratio of margin and standard error at which a failed gate counts as evidence
SLICE_CONFIDENCE = 0.95  # confidence over all slices together


@dataclass(frozen=True, slots=True)
class Gate:
    """The result of one condition on a candidate.

    name: the gate's name, for example `min_rows` or `minimum.accuracy`.
    value: the measured value.
    threshold: the required value.
    passed: whether the candidate meets the condition. None if evidence is missing.
    detail: the result in words.
    """

    name: str
    value: float
    threshold: float
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class GateResults:
    """The verdict on a candidate, its reason in words, and the results of all gates."""

    verdict: Verdict
    reason: str
    gates: tuple[Gate, ...]


def decide_promotion(evaluation: Evaluation, policy: Gates) -> GateResults:
    """Evaluate all gates. The verdict is reject if a gate fails, wait if evidence is missing, and promote otherwise."""
    gates = (
        *_check_rows(evaluation, policy),
        *_check_minimums(evaluation, policy),
        *_check_champion(evaluation, policy),
        *_check_slices(evaluation, policy),
    )
    failed_gates = [gate for gate in gates if gate.passed is False]
    undecided_gates = [gate for gate in gates if gate.passed is None]
    if failed_gates:
        return GateResults("reject", "; ".join(gate.detail for gate in failed_gates), gates)
    if undecided_gates:
        return GateResults("wait", "; ".join(gate.detail for gate in undecided_gates), gates)
    opponent = f"version {evaluation.champion_version}" if evaluation.champion_version else "no champion yet"
    return GateResults("promote", f"passed {len(gates)} gates against {opponent}", gates)


def record_verdict(
    run: Run, results: GateResults, evaluation: Evaluation, *, settings: Settings, now: datetime
) -> None:
    """Store the verdict on the run's candidate. A deployment reads this row. A second call changes nothing."""
    row = {
        "model": run.model,
        "candidate_version": evaluation.candidate_version,
        "champion_version": evaluation.champion_version,
        "verdict": results.verdict,
        "reason": results.reason[:1000],
        "gates": [{**asdict(gate), "value": _finite_or_none(gate.value)} for gate in results.gates],
        "run_id": run.run_id,
        "decided_at": now,
    }
    with session(settings, "pipeline") as connection:
        if decisions.find_verdict(connection, run.run_id) is None:
            history.add(connection, promotion_decision, row)


def _check_rows(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    rows = evaluation.compared_rows if evaluation.champion_version else evaluation.rows
    missing_rows = policy.min_rows - rows
    detail = f"waiting for {missing_rows:,} more labels" if missing_rows > 0 else f"{rows:,} test rows"
    if missing_rows > 0 and rows < evaluation.rows:
        detail += f" newer than what version {evaluation.champion_version} has learned from"
    yield Gate("min_rows", rows, policy.min_rows, None if missing_rows > 0 else True, detail)


def _check_minimums(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    for metric, threshold in policy.minimum.items():
        value = evaluation.candidate[metric].value
        passed = value >= threshold if HIGHER_IS_BETTER[metric] else value <= threshold
        bound = "at least" if HIGHER_IS_BETTER[metric] else "at most"
        detail = f"{metric} {value:.4f}, asked for {bound} {threshold:g}"
        yield Gate(f"minimum.{metric}", value, threshold, passed, detail)


def _check_champion(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    """Check the lower confidence bound of the difference between candidate and champion.

    `require: not_worse` asks for a bound above −margin, `require: better` for a bound above 0. Evidence is missing if
    the interval contains the threshold and is too wide.
    """
    if evaluation.champion_version is None or evaluation.compared_rows < policy.min_rows or not evaluation.better_by:
        return
    gate, better_by = policy.champion, evaluation.better_by
    margin = margin_at(gate.margin, evaluation.champion[gate.metric].value)
    threshold = 0.0 if gate.require == "better" else -margin
    z = NormalDist().inv_cdf(gate.confidence)
    # The power is the probability that an equal candidate passes. For `better`, the candidate is better by the margin.
    power = NormalDist().cdf(margin / better_by.standard_error - z) if better_by.standard_error else 1.0
    is_precise = better_by.standard_error <= margin / NEEDED_PRECISION
    passed: bool | None = better_by.low > threshold
    subject = "a gain of the margin" if gate.require == "better" else "an equal candidate"
    detail = (
        f"{gate.metric} better by {better_by.value:+.4f}, at {gate.confidence:.0%} by more than {better_by.low:+.4f}, "
        f"asked for {threshold:+.4f} (over {evaluation.compared_rows:,} rows {subject} passes with {power:.0%})"
    )
    if not passed and not is_precise and better_by.high > threshold:
        needed_factor = (better_by.standard_error * NEEDED_PRECISION / margin) ** 2 if margin else math.inf
        missing_labels = evaluation.compared_rows * (needed_factor - 1)
        passed, detail = None, f"{detail}: too few labels to tell, waiting for about {missing_labels:,.0f} more"
    yield Gate(f"champion.{gate.metric}", better_by.value, threshold, passed, detail)


def _check_slices(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    """Check that no slice is significantly worse by more than the margin, with a Bonferroni correction.

    A slice needs no proof that it is not worse, because nearly every candidate has slices too small for such a proof.
    """
    if not (policy.slices and evaluation.slices):
        return
    z = NormalDist().inv_cdf(1 - (1 - SLICE_CONFIDENCE) / len(evaluation.slices))
    margin = margin_at(policy.slices.margin, evaluation.champion[policy.champion.metric].value)
    for difference in evaluation.slices:
        better_by = difference.better_by
        upper = better_by.value + z * better_by.standard_error
        passed = not upper < -margin  # an undefined difference passes
        slice_name = f"{difference.column} = {difference.level}"
        detail = (
            f"{slice_name}: better by {better_by.value:+.4f}, surely below {upper:+.4f}, over {difference.rows:,} rows"
        )
        yield Gate(f"slice.{difference.column}.{difference.level}", better_by.value, -margin, passed, detail)


def _finite_or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None
