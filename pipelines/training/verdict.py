"""Decide whether a candidate may serve. `decide_promotion` is pure; `record_verdict` writes the deployment's input."""

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
NEEDED_PRECISION = 2.5  # a margin must be this many standard errors wide before a failed gate counts as evidence
SLICE_CONFIDENCE = 0.95  # over all slices together


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition on a candidate.

    name: the gate, for example `min_rows` or `minimum.accuracy`.
    value: the measured value.
    threshold: the required value.
    passed: None means that evidence is missing.
    detail: the text for people.
    """

    name: str
    value: float
    threshold: float
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class GateResults:
    verdict: Verdict
    reason: str
    gates: tuple[Gate, ...]


def decide_promotion(evaluation: Evaluation, policy: Gates) -> GateResults:
    """Return all gates and the verdict: promote if all gates pass, reject if one fails, else wait for labels."""
    gates = (
        *_enough_rows(evaluation, policy),
        *_minimum(evaluation, policy),
        *_champion(evaluation, policy),
        *_slices(evaluation, policy),
    )
    failed = [gate for gate in gates if gate.passed is False]
    missing = [gate for gate in gates if gate.passed is None]
    if failed:
        return GateResults("reject", "; ".join(gate.detail for gate in failed), gates)
    if missing:
        return GateResults("wait", "; ".join(gate.detail for gate in missing), gates)
    opponent = f"version {evaluation.champion_version}" if evaluation.champion_version else "no champion yet"
    return GateResults("promote", f"passed {len(gates)} gates against {opponent}", gates)


def record_verdict(
    run: Run, decision: GateResults, evaluation: Evaluation, *, settings: Settings, now: datetime
) -> None:
    """Append the verdict on the run's candidate. A second call leaves the first row unchanged."""
    row = {
        "model": run.model,
        "candidate_version": evaluation.candidate_version,
        "champion_version": evaluation.champion_version,
        "verdict": decision.verdict,
        "reason": decision.reason[:1000],
        "gates": [{**asdict(gate), "value": _finite(gate.value)} for gate in decision.gates],
        "run_id": run.run_id,
        "decided_at": now,
    }
    with session(settings, "pipeline") as connection:
        if decisions.find_verdict(connection, run.run_id) is None:
            history.add(connection, promotion_decision, row)


def _enough_rows(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    compared = evaluation.compared_rows if evaluation.champion_version else evaluation.rows
    missing = policy.min_rows - compared
    detail = f"waiting for {missing:,} more labels" if missing > 0 else f"{compared:,} test rows"
    if missing > 0 and compared < evaluation.rows:
        detail += f" newer than what version {evaluation.champion_version} has learned from"
    yield Gate("min_rows", compared, policy.min_rows, None if missing > 0 else True, detail)


def _minimum(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    for metric, threshold in policy.minimum.items():
        result = evaluation.candidate[metric].value
        passed = result >= threshold if HIGHER_IS_BETTER[metric] else result <= threshold
        bound = "at least" if HIGHER_IS_BETTER[metric] else "at most"
        yield Gate(
            f"minimum.{metric}", result, threshold, passed, f"{metric} {result:.4f}, asked for {bound} {threshold:g}"
        )


def _champion(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    """Compare the candidate with the champion by the lower confidence bound of their difference.

    `not_worse` passes where the bound lies above −margin, `better` where it lies above 0. If the interval contains the
    threshold and is too wide, evidence is missing and the candidate does not fail.
    """
    if evaluation.champion_version is None or evaluation.compared_rows < policy.min_rows or not evaluation.better_by:
        return
    gate, better_by = policy.champion, evaluation.better_by
    margin = margin_at(gate.margin, evaluation.champion[gate.metric].value)
    threshold = 0.0 if gate.require == "better" else -margin
    z = NormalDist().inv_cdf(gate.confidence)
    # An equal candidate should not pass `better`, so power and precision there refer to a gain of the margin.
    power = NormalDist().cdf(margin / better_by.standard_error - z) if better_by.standard_error else 1.0
    precise = better_by.standard_error <= margin / NEEDED_PRECISION
    passed: bool | None = better_by.low > threshold
    subject = "a gain of the margin" if gate.require == "better" else "an equal candidate"
    detail = (
        f"{gate.metric} better by {better_by.value:+.4f}, at {gate.confidence:.0%} by more than {better_by.low:+.4f}, "
        f"asked for {threshold:+.4f} (over {evaluation.compared_rows:,} rows {subject} passes with {power:.0%})"
    )
    if not passed and not precise and better_by.high > threshold:
        factor = (better_by.standard_error * NEEDED_PRECISION / margin) ** 2 if margin else math.inf
        missing_labels = evaluation.compared_rows * (factor - 1)
        passed, detail = None, f"{detail}: too few labels to tell, waiting for about {missing_labels:,.0f} more"
    yield Gate(f"champion.{gate.metric}", better_by.value, threshold, passed, detail)


def _slices(evaluation: Evaluation, policy: Gates) -> Iterator[Gate]:
    """Fail only a slice that is significantly worse than the margin, Bonferroni-corrected for the number of slices.

    To require proof that each slice is not worse would reject nearly every equal candidate.
    """
    if not (policy.slices and evaluation.slices):
        return
    z = NormalDist().inv_cdf(1 - (1 - SLICE_CONFIDENCE) / len(evaluation.slices))
    margin = margin_at(policy.slices.margin, evaluation.champion[policy.champion.metric].value)
    for result in evaluation.slices:
        upper = result.better_by.value + z * result.better_by.standard_error
        passed = not upper < -margin  # an undefined difference passes
        place = f"{result.column} = {result.level}"
        detail = (
            f"{place}: better by {result.better_by.value:+.4f}, surely below {upper:+.4f}, over {result.rows:,} rows"
        )
        yield Gate(f"slice.{result.column}.{result.level}", result.better_by.value, -margin, passed, detail)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
