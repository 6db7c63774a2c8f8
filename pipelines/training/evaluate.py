"""Evaluate: score candidate and champion on the same test rows, newer than all rows that either learned from."""

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
    drawn_together,
    entity_weights,
    judge,
    value,
    weighted,
)
from pipelines.runs.snapshot import Snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import METRICS, EntitySplit
from pipelines.training import plots, tracking
from pipelines.training.fit import newest_label
from pipelines.training.split import split_rows
from utils.errors import NotFound
from utils.settings import Settings

INTERVAL = 0.95  # two-sided, for the displayed metrics
SLICE_ROWS = 50  # smaller slices are not compared
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its bootstrap interval and standard error, in the metric's own unit."""

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class SliceDifference:
    """How much better the candidate is than the champion on the rows where `column` is `level`."""

    column: str
    level: str
    rows: int
    better_by: Estimate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Evidence for `decide_promotion`.

    candidate_version: the version that is judged.
    champion_version: the version that serves. None before the first deployment.
    rows: the number of test rows of the candidate.
    compared_rows: the number of test rows that are newer than the champion's `fitted_until` too.
    candidate: estimates by metric, over `rows`.
    champion: estimates by metric, over `compared_rows`.
    better_by: the paired difference over `compared_rows`. Positive where the candidate is better, for every metric.
    slices: the paired differences in slices of `compared_rows`.
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
    """Score the candidate, and the champion if there is one, and log both to MLflow.

    In a split by entity the test entities are always the same. The champion's `evaluated_as` version did not learn from
    them, so it is scored in place of the champion's final fit.

    Raises:
        NotFound: the run has no candidate.
        Unreachable, IntegrityError.
    """
    if not (run.candidate_version and run.mlflow_run_id):
        raise NotFound(what="candidate", where=f"training run {run.run_id}", hint="the training step did not finish")
    spec = run.spec
    test = split_rows(snapshot.frame, spec=spec, until=newest_label(run)).test
    candidate = _judged(registry.load(settings, run.model, run.candidate_version), test, run=run)
    champion_version, champion, shared = _champion(run, test, settings=settings)
    paired = _paired(candidate, champion, test, shared, run=run) if champion and shared.any() else {}
    units = _resampling_units(test)
    evaluation = Evaluation(
        candidate_version=run.candidate_version,
        champion_version=champion_version,
        rows=len(test),
        compared_rows=int(shared.sum()),
        candidate=_estimates(candidate, units, METRICS[spec.task]),
        champion=_estimates(_part(champion, shared), units[shared], METRICS[spec.task]) if paired and champion else {},
        better_by=paired.get("better_by"),
        slices=paired.get("slices", ()),
    )
    _show(evaluation, candidate, run=run, settings=settings)
    return evaluation


def load_evaluation(run: Run, *, settings: Settings) -> Evaluation:
    """Read the evaluation that `evaluate` logged to the run's MLflow artifacts."""
    import mlflow.artifacts

    registry.client(settings)  # fails fast where MLflow is down
    path = mlflow.artifacts.download_artifacts(
        run_id=run.mlflow_run_id, artifact_path=EVALUATION_FILE, tracking_uri=settings.mlflow_tracking_url
    )
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        return from_json(json.load(file))


def from_json(content: dict[str, Any]) -> Evaluation:
    """The inverse of `dataclasses.asdict`."""
    estimates = {side: {name: Estimate(**e) for name, e in content[side].items()} for side in ("candidate", "champion")}
    slices = tuple(SliceDifference(**{**s, "better_by": Estimate(**s["better_by"])}) for s in content["slices"])
    better_by = Estimate(**content["better_by"]) if content["better_by"] else None
    return Evaluation(**{**content, **estimates, "slices": slices, "better_by": better_by})


def _champion(run: Run, test: pd.DataFrame, *, settings: Settings) -> tuple[int | None, JudgedRows | None, np.ndarray]:
    """The champion's version, its judged predictions of all test rows, and a mask of rows that are new to it."""
    with session(settings, "pipeline") as connection:
        row = deployments.champion(connection, run.model)
    if row is None:
        return None, None, np.zeros(len(test), dtype=bool)
    version = judged_version = int(row["version"])
    tags = registry.version_tags(settings, run.model, version)
    unseen = np.ones(len(test), dtype=bool)
    if isinstance(run.spec.training.split, EntitySplit):
        judged_version = int(tags.get("evaluated_as", version))
    else:
        unseen = (test["event_time"] > pd.Timestamp(registry.fitted_until(tags))).to_numpy()
    return version, _judged(registry.load(settings, run.model, judged_version), test, run=run), unseen


def _judged(bundle: Bundle, test: pd.DataFrame, *, run: Run) -> JudgedRows:
    # A champion may have features that the snapshot lacks. They are missing values, as in the requests it would get.
    rows = test.reindex(columns=[*test.columns, *(set(bundle.spec.features.columns) - set(test.columns))])
    scores = score(bundle.model, pool_from_frame(rows, spec=bundle.spec, label=False), spec=bundle.spec)
    return judge(test[run.spec.label.column].to_numpy(), scores, spec=run.spec)


def _resampling_units(rows: pd.DataFrame) -> np.ndarray:
    return drawn_together(rows["entity_id"].to_numpy(), rows["event_time"].to_numpy())


def _part(judged: JudgedRows, rows: np.ndarray) -> JudgedRows:
    probabilities = judged.probabilities[rows] if judged.probabilities is not None else None
    return JudgedRows(judged.truth[rows], judged.predicted[rows], probabilities, judged.classes)


def _estimates(judged: JudgedRows, entities: np.ndarray, metrics: tuple[str, ...]) -> dict[str, Estimate]:
    blocks = entity_weights(entities)
    tail = (1 - INTERVAL) / 2
    return {
        m: _estimate(value(m, judged), np.concatenate([weighted(m, judged, w) for w in blocks]), tail) for m in metrics
    }


def _paired(
    candidate: JudgedRows, champion: JudgedRows, test: pd.DataFrame, shared: np.ndarray, *, run: Run
) -> dict[str, Any]:
    """The paired differences over the shared rows and over each slice, from the same resamples of entities."""
    gate, slicing = run.spec.gates.champion, run.spec.gates.slices
    rows = test[shared]
    pair = _part(candidate, shared), _part(champion, shared)
    blocks = entity_weights(_resampling_units(rows))
    tail = 1 - gate.confidence  # one-sided, like the gate
    slices = []
    for column in slicing.columns if slicing else ():
        for level in sorted(rows[column].dropna().unique()):
            in_slice = (rows[column] == level).to_numpy()
            if (count := int(in_slice.sum())) >= SLICE_ROWS:
                slice_pair = _part(pair[0], in_slice), _part(pair[1], in_slice)
                better_by = difference(gate.metric, slice_pair, [w[:, in_slice] for w in blocks], tail)
                slices.append(SliceDifference(column, str(level), count, better_by))
    return {"better_by": difference(gate.metric, pair, blocks, tail), "slices": tuple(slices)}


def difference(metric: str, pair: tuple[JudgedRows, JudgedRows], blocks: list[np.ndarray], tail: float) -> Estimate:
    """Estimate how much better the first of `pair` is than the second on the same rows.

    blocks: weights of resamples (`entity_weights`).
    tail: the share that the interval leaves out on each side.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    resampled = np.concatenate([weighted(metric, pair[0], w) - weighted(metric, pair[1], w) for w in blocks])
    return _estimate(sign * (value(metric, pair[0]) - value(metric, pair[1])), sign * resampled, tail)


def _estimate(point: float, resampled: np.ndarray, tail: float) -> Estimate:
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Estimate(point, float(low), float(high), float(np.nanstd(resampled, ddof=1)))


def _show(evaluation: Evaluation, candidate: JudgedRows, *, run: Run, settings: Settings) -> None:
    assert run.mlflow_run_id  # noqa: S101
    client = registry.client(settings)
    metrics = {f"test_{name}": estimate.value for name, estimate in evaluation.candidate.items()}
    metrics |= {f"champion_test_{name}": estimate.value for name, estimate in evaluation.champion.items()}
    if evaluation.better_by:
        metrics["better_by"] = evaluation.better_by.value
    tracking.log(run.mlflow_run_id, settings=settings, metrics=metrics)
    client.log_dict(run.mlflow_run_id, asdict(evaluation), EVALUATION_FILE)
    if run.spec.task == "regression":
        client.log_figure(run.mlflow_run_id, plots.residuals(candidate), "residuals.png")
    else:
        client.log_figure(run.mlflow_run_id, plots.confusion(candidate, run.spec.label.classes), "confusion_matrix.png")
