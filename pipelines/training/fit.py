"""Train: fit a model with the best parameters, and register it as a version with all files that serving needs."""

import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.models import infer_signature

from pipelines import registry
from pipelines.artifact.bundle import write_companions
from pipelines.artifact.learner import LIBRARY, Model, feature_importance, fit, pool_from_frame, score
from pipelines.artifact.profile import build_profile
from pipelines.runs import training_runs
from pipelines.runs.snapshot import Manifest, Snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from pipelines.training import plots, tracking
from pipelines.training.lookback import LOOK_BACK_KEY, newest_rows
from pipelines.training.split import split_rows
from utils.errors import NotFound
from utils.settings import Settings


def train(run: Run, snapshot: Snapshot, *, settings: Settings) -> Run:
    """Refit the best trial's parameters on the training and validation rows, and register the model as the candidate.

    The candidate gets the alias `challenger`. A second call returns the run unchanged.

    Raises:
        NotFound: the search has not recorded its best parameters.
    """
    if run.candidate_version:
        return run
    if not (run.best_params and run.mlflow_run_id):
        raise NotFound(what="best parameters", where=f"training run {run.run_id}", hint="the search did not finish")
    parts = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run))
    rows = pd.concat([parts.train, parts.validation])
    version = registry.find_version(settings, run.model, run_id=run.run_id, evaluated_as=None)
    if version is None:
        model, rows = fit_best_params(rows, run=run)
        version = register(model, rows, run=run, manifest=snapshot.manifest, settings=settings, evaluated_as=None)
        client = registry.client(settings)
        client.log_figure(run.mlflow_run_id, plots.plot_importance(feature_importance(model)), "feature_importance.png")
        tracking.log_values(
            run.mlflow_run_id, settings=settings, params=run.best_params, tags={"candidate_version": str(version)}
        )
    registry.set_alias(settings, run.model, registry.CHALLENGER, version)
    return training_runs.record(settings, run, candidate_version=version)


def newest_label(run: Run) -> pd.Timestamp:
    """The newest event time that a label of the run may have: `window_end` minus the maturity of the labels."""
    return pd.Timestamp(run.window_end - run.spec.label.maturity)


def fit_best_params(rows: pd.DataFrame, *, run: Run) -> tuple[Model, pd.DataFrame]:
    """Fit a model with the run's best parameters and number of trees, without early stopping.

    Return the model and the rows on which it was fitted: all of `rows`, or the newest if the search chose a look-back.
    """
    assert run.best_params  # noqa: S101  (callers checked)
    params = {name: value for name, value in run.best_params.items() if name not in {"trees", LOOK_BACK_KEY}}
    fitted_rows = newest_rows(rows, run.best_params.get(LOOK_BACK_KEY))
    return fit(fitted_rows, spec=run.spec, params=params, trees=int(run.best_params["trees"])), fitted_rows


def register(
    model: Model,
    fitted_rows: pd.DataFrame,
    *,
    run: Run,
    manifest: Manifest,
    settings: Settings,
    evaluated_as: int | None,
) -> int:
    """Register `model` with all files that serving needs and all tags that record its origin. Return its version.

    fitted_rows: the rows on which the model was fitted.
    evaluated_as: the candidate that was judged in place of a final fit. None for a candidate.
    """
    spec = run.spec
    predictions = score(model, pool_from_frame(fitted_rows, spec=spec, label=False), spec=spec).predictions
    tags = {
        "run_id": run.run_id,
        "snapshot_id": manifest.snapshot_id,
        "snapshot_sha256": manifest.content_sha256,
        "spec_hash": spec.hash,
        "code_commit": run.code_commit,
        "fitted_until": fitted_rows["event_time"].max().isoformat(),
        "reason": run.reason[:500],
        **({"evaluated_as": str(evaluated_as)} if evaluated_as else {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        _save_mlflow_model(model, fitted_rows, spec=spec, target=target)
        profile = build_profile(fitted_rows, predictions, spec=spec)
        write_companions(target, model=model, spec=spec, profile=profile, fitted=fitted_rows)
        return registry.register(
            settings,
            model=run.model,
            mlflow_run_id=str(run.mlflow_run_id),
            folder=target,
            tags=tags,
            description=spec.description,
        )


def _save_mlflow_model(model: Model, fitted_rows: pd.DataFrame, *, spec: ModelSpec, target: Path) -> None:
    example = fitted_rows[list(spec.features.columns)].head(3)
    # Without explicit requirements MLflow takes seconds to guess them.
    flavor, requirement = getattr(mlflow, LIBRARY), f"{LIBRARY}=={version(LIBRARY)}"
    flavor.save_model(model, str(target), signature=infer_signature(example), pip_requirements=[requirement])
