"""Evaluate: score the candidate and the champion, and compare them on rows from which neither has learned."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from db.history import deployments
from db.session import session
from pipelines import registry
from pipelines.artifact.bundle import Bundle
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.measures.metrics import (
    HIGHER_IS_BETTER,
    JudgedRows,
    entity_weights,
    judge,
    metric_value,
    resampling_units,
    weighted_metric,
)
from pipelines.runs.snapshot import Snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import METRICS, EntitySplit
from pipelines.training import plots, tracking
from pipelines.training.fit import newest_label
from pipelines.training.split import split_rows
from utils.errors import NotFound
from utils.settings import Settings

INTERVAL = 0.95  # confidence of the two-sided intervals of displayed metrics
SLICE_ROWS = 50  # slices with fewer rows are not compared
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate of a metric or a difference, in the unit of the metric.

    value: the estimate from all rows, each counted once.
    low, high: the bounds of its bootstrap interval.
    standard_error: the standard deviation over the resamples.
    """

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class SliceDifference:
    """The difference between candidate and champion in one slice: the rows where `column` has the value `level`.

    rows: the number of rows in the slice.
    better_by: the paired difference. Positive where the candidate is better.
    """

    column: str
    level: str
    rows: int
    better_by: Estimate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The comparison of candidate and champion, from which `decide_promotion` reaches the verdict.

    candidate_version: the version that is judged.
    champion_version: the version that serves. None before the first deployment.
    rows: the number of test rows.
    compared_rows: the number of test rows from which the champion has not learned.
    candidate: estimates by metric, over `rows`.
    champion: estimates by metric, over `compared_rows`.
    better_by: the paired difference over `compared_rows`. Positive where the candidate is better, for every metric.
        None without a champion or compared rows.
    slices: the paired differences in the slices of `compared_rows`.
    """

    candidate_version: int
    champion_version: int | None
    rows: int
    compared_rows: int
    candidate: Mapping[str, Estimate]
    champion: Mapping[str, Estimate]
    better_by: Estimate | None
    slices: tuple[SliceDifference, ...]


def evaluate(run: Run, snapshot: Snapshot, *, settings: Settings) -> Evaluation:
    """Score the candidate and, if there is one, the champion. Log the evaluation to MLflow.

    In a split by entity, the champion's final fit has learned from the test entities. So the version in the champion's
    tag `evaluated_as` is scored instead.

    Raises:
        NotFound: the run has no candidate.
        Unreachable, IntegrityError.
    """
    if not (run.candidate_version and run.mlflow_run_id):
        raise NotFound(what="candidate", where=f"training run {run.run_id}", hint="the training step did not finish")
    spec = run.spec
    test = split_rows(snapshot.frame, spec=spec, until=newest_label(run)).test
    candidate = _judge_bundle(registry.load(settings, run.model, run.candidate_version), test, run=run)
    champion_version, champion, is_compared = _judge_champion(run, test, settings=settings)
    differences = (
        _compare_with_champion(candidate, champion, test, is_compared, run=run)
        if champion and is_compared.any()
        else {}
    )
    units = _units_of(test)
    evaluation = Evaluation(
        candidate_version=run.candidate_version,
        champion_version=champion_version,
        rows=len(test),
        compared_rows=int(is_compared.sum()),
        candidate=_estimate_metrics(candidate, units, METRICS[spec.task]),
        champion=_estimate_metrics(_select_rows(champion, is_compared), units[is_compared], METRICS[spec.task])
        if differences and champion
        else {},
        better_by=differences.get("better_by"),
        slices=differences.get("slices", ()),
    )
    _log_evaluation(evaluation, candidate, run=run, settings=settings)
    return evaluation


def load_evaluation(run: Run, *, settings: Settings) -> Evaluation:
    """Read the evaluation that `evaluate` logged to the run's MLflow artifacts."""
    import mlflow.artifacts

    registry.client(settings)  # raises Unreachable at once if MLflow does not answer
    path = mlflow.artifacts.download_artifacts(
        run_id=run.mlflow_run_id, artifact_path=EVALUATION_FILE, tracking_uri=settings.mlflow_tracking_url
    )
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        return evaluation_from_json(json.load(file))


def evaluation_from_json(content: dict[str, Any]) -> Evaluation:
    """Build an evaluation from the output of `dataclasses.asdict`."""
    estimates = {
        side: {metric: Estimate(**estimate) for metric, estimate in content[side].items()}
        for side in ("candidate", "champion")
    }
    slices = tuple(
        SliceDifference(**{**difference, "better_by": Estimate(**difference["better_by"])})
        for difference in content["slices"]
    )
    better_by = Estimate(**content["better_by"]) if content["better_by"] else None
    return Evaluation(**{**content, **estimates, "slices": slices, "better_by": better_by})


def _judge_champion(
    run: Run, test: pd.DataFrame, *, settings: Settings
) -> tuple[int | None, JudgedRows | None, np.ndarray]:
    """Return the champion's version, its judged test rows, and a mask of the rows from which it has not learned."""
    with session(settings, "pipeline") as connection:
        row = deployments.champion(connection, run.model)
    if row is None:
        return None, None, np.zeros(len(test), dtype=bool)
    version = scored_version = int(row["version"])
    tags = registry.version_tags(settings, run.model, version)
    is_unseen = np.ones(len(test), dtype=bool)
    if isinstance(run.spec.training.split, EntitySplit):
        scored_version = int(tags.get("evaluated_as", version))
    else:
        is_unseen = (test["event_time"] > pd.Timestamp(registry.fitted_until(tags))).to_numpy()
    return version, _judge_bundle(registry.load(settings, run.model, scored_version), test, run=run), is_unseen


def _judge_bundle(bundle: Bundle, test: pd.DataFrame, *, run: Run) -> JudgedRows:
    # A champion may have features that the snapshot lacks. They count as missing, as they would in a request.
    rows = test.reindex(columns=[*test.columns, *(set(bundle.spec.features.columns) - set(test.columns))])
    scores = score(bundle.model, pool_from_frame(rows, spec=bundle.spec, label=False), spec=bundle.spec)
    return judge(test[run.spec.label.column].to_numpy(), scores, spec=run.spec)


def _units_of(rows: pd.DataFrame) -> np.ndarray:
    return resampling_units(rows["entity_id"].to_numpy(), rows["event_time"].to_numpy())


def _select_rows(judged_rows: JudgedRows, mask: np.ndarray) -> JudgedRows:
    probabilities = judged_rows.probabilities[mask] if judged_rows.probabilities is not None else None
    return JudgedRows(judged_rows.truth[mask], judged_rows.predicted[mask], probabilities, judged_rows.classes)


def _estimate_metrics(judged_rows: JudgedRows, units: np.ndarray, metrics: tuple[str, ...]) -> dict[str, Estimate]:
    blocks = entity_weights(units)
    tail = (1 - INTERVAL) / 2
    estimates = {}
    for metric in metrics:
        resampled = np.concatenate([weighted_metric(metric, judged_rows, weights) for weights in blocks])
        estimates[metric] = _estimate(metric_value(metric, judged_rows), resampled, tail)
    return estimates


def _compare_with_champion(
    candidate: JudgedRows, champion: JudgedRows, test: pd.DataFrame, is_compared: np.ndarray, *, run: Run
) -> dict[str, Any]:
    """Estimate the paired differences over all compared rows and in each slice, from the same resamples.

    is_compared: mask of the test rows from which the champion has not learned.
    """
    gate, slice_gate = run.spec.gates.champion, run.spec.gates.slices
    rows = test[is_compared]
    pair = _select_rows(candidate, is_compared), _select_rows(champion, is_compared)
    blocks = entity_weights(_units_of(rows))
    tail = 1 - gate.confidence  # one-sided, like the gate
    slices = []
    for column in slice_gate.columns if slice_gate else ():
        for level in sorted(rows[column].dropna().unique()):
            in_slice = (rows[column] == level).to_numpy()
            if (count := int(in_slice.sum())) >= SLICE_ROWS:
                slice_pair = _select_rows(pair[0], in_slice), _select_rows(pair[1], in_slice)
                slice_blocks = [weights[:, in_slice] for weights in blocks]
                better_by = estimate_difference(gate.metric, slice_pair, slice_blocks, tail)
                slices.append(SliceDifference(column, str(level), count, better_by))
    return {"better_by": estimate_difference(gate.metric, pair, blocks, tail), "slices": tuple(slices)}


def estimate_difference(
    metric: str, pair: tuple[JudgedRows, JudgedRows], blocks: list[np.ndarray], tail: float
) -> Estimate:
    """Estimate by how much the first of `pair` is better than the second on the same rows.

    blocks: the weights of the resamples (`entity_weights`).
    tail: the share of the resamples beyond the interval, on each side.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    resampled = np.concatenate(
        [weighted_metric(metric, pair[0], weights) - weighted_metric(metric, pair[1], weights) for weights in blocks]
    )
    return _estimate(sign * (metric_value(metric, pair[0]) - metric_value(metric, pair[1])), sign * resampled, tail)


def _estimate(value: float, resampled: np.ndarray, tail: float) -> Estimate:
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), float(np.nanstd(resampled, ddof=1)))


def _log_evaluation(evaluation: Evaluation, candidate: JudgedRows, *, run: Run, settings: Settings) -> None:
    assert run.mlflow_run_id  # noqa: S101
    client = registry.client(settings)
    metrics = {f"test_{name}": estimate.value for name, estimate in evaluation.candidate.items()}
    metrics |= {f"champion_test_{name}": estimate.value for name, estimate in evaluation.champion.items()}
    if evaluation.better_by:
        metrics["better_by"] = evaluation.better_by.value
    tracking.log_values(run.mlflow_run_id, settings=settings, metrics=metrics)
    client.log_dict(run.mlflow_run_id, asdict(evaluation), EVALUATION_FILE)
    if run.spec.task == "regression":
        client.log_figure(run.mlflow_run_id, plots.plot_residuals(candidate), "residuals.png")
    else:
        figure = plots.plot_confusion(candidate, run.spec.label.classes)
        client.log_figure(run.mlflow_run_id, figure, "confusion_matrix.png")
