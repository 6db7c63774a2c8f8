"""Log trainings to MLflow. A training is a run with its data set, metrics and plots. A trial is a child run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from pipelines import registry
from pipelines.runs import training_runs
from pipelines.runs.snapshot import Manifest
from pipelines.runs.training_runs import Run
from utils.settings import Settings

# Without this tag MLflow shows its pages for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def open_run(run: Run, manifest: Manifest, *, settings: Settings) -> Run:
    """Create an MLflow run for the training, with a name, tags and the snapshot as data set. Return the updated run.

    A second call changes nothing.
    """
    if run.mlflow_run_id:
        return run
    client = registry.client(settings)
    experiment = client.get_experiment_by_name(run.model)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(run.model, tags=EXPERIMENT_TAGS)
    )
    mlflow_run_id = client.create_run(
        experiment_id,
        tags={
            MLFLOW_RUN_NAME: f"training {run.window_end:%Y-%m-%d %H:%M}",
            MLFLOW_RUN_NOTE: f"{run.reason}. Snapshot `{manifest.snapshot_id}`, commit `{run.code_commit}`.",
            "mlflow.source.git.commit": run.code_commit,
            "evergreen.run_id": run.run_id,
            "evergreen.snapshot_id": manifest.snapshot_id,
            "evergreen.spec_hash": run.spec.hash,
        },
    ).info.run_id
    source = {"store": run.spec.name, "commit_seq": run.commit_seq, "window_end": f"{run.window_end:%FT%TZ}"}
    dataset = Dataset(
        name=manifest.snapshot_id,
        digest=manifest.content_sha256[:36],  # MLflow's limit
        source_type="evergreen_snapshot",
        source=json.dumps(source),
        profile=f'{{"num_rows": {manifest.row_count}}}',
    )
    client.log_inputs(mlflow_run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    return training_runs.record(settings, run, mlflow_run_id=mlflow_run_id)


def close_run(run: Run, *, settings: Settings, failed: bool = False) -> None:
    """End the MLflow run of the training, if there is one. `failed` sets its status to FAILED."""
    if run.mlflow_run_id:
        registry.client(settings).set_terminated(run.mlflow_run_id, "FAILED" if failed else "FINISHED")


def log_trial(
    run: Run, *, settings: Settings, number: int, params: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Log a finished trial as a child run, so that MLflow can compare the trials of a training."""
    assert run.mlflow_run_id  # noqa: S101  (set by open_run)
    client = registry.client(settings)
    parent_run = client.get_run(run.mlflow_run_id).info
    tags = {MLFLOW_PARENT_RUN_ID: run.mlflow_run_id, MLFLOW_RUN_NAME: f"trial {number}"}
    trial_run_id = client.create_run(parent_run.experiment_id, tags=tags).info.run_id
    log_values(trial_run_id, settings=settings, params=params, metrics=metrics)
    client.set_terminated(trial_run_id)


def log_values(
    mlflow_run_id: str,
    *,
    settings: Settings,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log all values in one request.

    metrics: values by name. Values that are not finite are left out.
    curves: one value per tree, by name. At most a hundred evenly spaced values of each curve are logged.
    """
    metric_points = [Metric(name, value, 0, 0) for name, value in (metrics or {}).items() if np.isfinite(value)]
    for name, values in (curves or {}).items():
        steps = np.unique(np.linspace(0, len(values) - 1, 100).astype(int))
        metric_points += [Metric(name, float(values[step]), 0, int(step)) for step in steps]
    registry.client(settings).log_batch(
        mlflow_run_id,
        metrics=metric_points,
        params=[Param(name, str(value)) for name, value in (params or {}).items()],
        tags=[RunTag(name, value) for name, value in (tags or {}).items()],
    )
