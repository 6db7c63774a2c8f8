"""Search: find the parameters that are best on the validation rows, within the limits of trials and time."""

import logging
import math
import time
import warnings
import zlib
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from pipelines.artifact import learner
from pipelines.artifact.learner import fit, pool_from_frame, score
from pipelines.measures.metrics import HIGHER_IS_BETTER, judge, metric_value
from pipelines.runs import training_runs
from pipelines.runs.snapshot import Snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import METRICS, Space
from pipelines.training import tracking
from pipelines.training.fit import newest_label
from pipelines.training.lookback import LOOK_BACK_KEY, look_back_choices, newest_rows
from pipelines.training.split import Split, split_rows
from utils.settings import OPTUNA_DB, Settings

MOST_TREES = 500  # of a trial
HEARTBEAT = 60  # seconds between two signals that a trial still runs
CURVE_NAMES = ("learn", "validation")  # of the loss curves, in CatBoost's order

log = logging.getLogger(__name__)


def search(run: Run, snapshot: Snapshot, *, settings: Settings) -> Run:
    """Run the search, and record the parameters and the number of trees of the best trial in the run's row.

    A call after a crash continues the study that the first call began.

    Raises: MissingLabels, Unreachable.
    """
    run = tracking.open_run(run, snapshot.manifest, settings=settings)
    if run.best_params:
        return run
    study, curves = _optimize(run, snapshot, settings=settings, shared=False)
    return _record_best(run, study, curves, settings=settings)


def open_search(run: Run, snapshot: Snapshot, *, settings: Settings) -> Run:
    """Create the MLflow run and the study that all workers of `explore` share.

    Raises: MissingLabels, Unreachable.
    """
    run = tracking.open_run(run, snapshot.manifest, settings=settings)
    parts = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run))
    _load_study(run, look_back_choices(parts, spec=run.spec), settings=settings, shared=True)
    return run


def explore(run: Run, snapshot: Snapshot, *, settings: Settings) -> int:
    """Run trials of a search together with other workers. Return the number of complete trials of all workers.

    Call `open_search` first, and then `explore` in each worker. Together, the workers start at most the run's number of
    trials. If a worker is killed, `search` runs the missing trials.

    Raises: MissingLabels, Unreachable.
    """
    study, _ = _optimize(run, snapshot, settings=settings, shared=True)
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _optimize(
    run: Run, snapshot: Snapshot, *, settings: Settings, shared: bool
) -> tuple[optuna.Study, dict[int, dict[str, list[float]]]]:
    """Run trials until their number or the time limit is reached. Return the study and the loss curves by trial number.

    shared: whether other workers run trials of the same study.
    """
    parts = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run))
    look_backs = look_back_choices(parts, spec=run.spec)
    study = _load_study(run, look_backs, settings=settings, shared=shared)
    limits = run.spec.training.search
    curves: dict[int, dict[str, list[float]]] = {}
    start = time.monotonic()

    def objective(trial: optuna.Trial) -> float:
        if shared and _count_earlier_trials(trial) >= run.trials:
            study.stop()
            raise optuna.TrialPruned
        metrics, trees, curves[trial.number] = try_parameters(trial, parts=parts, look_backs=look_backs, run=run)
        trial.set_user_attr("trees", trees)
        logged_metrics = {f"validation_{name}": value for name, value in metrics.items()}
        params = {**trial.params, "trees": trees}
        tracking.log_trial(run, settings=settings, number=trial.number, params=params, metrics=logged_metrics)
        trial_value = metrics[limits.metric]
        log.info(
            "trial %d: %s %.4f with %d trees, %.0f s",
            trial.number,
            limits.metric,
            trial_value,
            trees,
            time.monotonic() - start,
        )
        return trial_value

    stop_after_last_trial = MaxTrialsCallback(run.trials, states=(TrialState.COMPLETE,))
    complete_trials = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if complete_trials < run.trials:
        study.optimize(objective, timeout=limits.timeout.total_seconds(), callbacks=[stop_after_last_trial])
    return study, curves


def _count_earlier_trials(trial: optuna.Trial) -> int:
    """Count the complete and running trials of all workers that started before `trial`. They have smaller numbers."""
    active_trials = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
    return sum(active_trial.number < trial.number for active_trial in active_trials)


def try_parameters(
    trial: optuna.Trial, *, parts: Split, look_backs: list[str], run: Run
) -> tuple[dict[str, float], int, dict[str, list[float]]]:
    """Fit a model with the parameters that Optuna suggests for `trial`.

    Return the metrics on the validation rows, the number of trees that early stopping kept, and the loss curves.

    look_backs: the look-backs to choose from. Empty if the model file sets the look-back.
    """
    spec = run.spec
    params = _suggest_params(trial, spec.training.search.space)
    look_back = trial.suggest_categorical(LOOK_BACK_KEY, look_backs) if look_backs else None
    train_rows = newest_rows(parts.train, look_back)
    model = fit(train_rows, spec=spec, params=params, trees=MOST_TREES, validation=parts.validation)
    scores = score(model, pool_from_frame(parts.validation, spec=spec, label=False), spec=spec)
    judged_rows = judge(parts.validation[spec.label.column].to_numpy(), scores, spec=spec)
    metrics = {name: metric_value(name, judged_rows) for name in METRICS[spec.task]}
    return metrics, learner.tree_count(model), learner.loss_curves(model)


def _suggest_params(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Let Optuna suggest a value for each parameter of the space."""
    return {
        name: trial.suggest_int(name, low, int(high))
        if isinstance(low, int)
        else trial.suggest_float(name, low, high, log=name in space.LOG)
        for name, (low, high) in space.ranges.items()
    }


def _load_study(run: Run, look_backs: list[str], *, settings: Settings, shared: bool) -> optuna.Study:
    """Load the study of the run from MariaDB, or create it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # about heartbeats
        storage = RDBStorage(
            settings.db_url("pipeline", OPTUNA_DB),
            heartbeat_interval=HEARTBEAT,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=2),
        )
    study = optuna.create_study(
        study_name=run.run_id,
        storage=storage,
        load_if_exists=True,
        direction="maximize" if HIGHER_IS_BETTER[run.spec.training.search.metric] else "minimize",
    )
    trials = study.get_trials(deepcopy=False)
    # Workers with the same seed would run the same trials. A retry with the same seed would repeat the first trials.
    seed = None if shared else zlib.crc32(f"{run.run_id} {len(trials)}".encode())
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    if look_backs and not trials:
        # The look-back matters most. So each look-back is tried once with the middle value of every other parameter.
        for look_back in look_backs:
            study.enqueue_trial({LOOK_BACK_KEY: look_back, **_middle_params(run.spec.training.search.space)})
    return study


def _middle_params(space: Space) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, (low, high) in space.ranges.items():
        if name in space.LOG:
            params[name] = math.sqrt(low * high)
        else:
            params[name] = (low + high) // 2 if isinstance(low, int) else (low + high) / 2
    return params


def _record_best(
    run: Run, study: optuna.Study, curves: dict[int, dict[str, list[float]]], *, settings: Settings
) -> Run:
    best_trial = study.best_trial
    complete_trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best_curves = curves.get(best_trial.number, {}).values()
    loss_curves = {f"loss_{name}": losses for name, losses in zip(CURVE_NAMES, best_curves, strict=False)}
    validation_metric = f"validation_{run.spec.training.search.metric}"
    assert run.mlflow_run_id  # noqa: S101
    tracking.log_values(
        run.mlflow_run_id,
        settings=settings,
        curves=loss_curves,
        metrics={validation_metric: float(np.asarray(best_trial.value)), "trials": len(complete_trials)},
    )
    return training_runs.record(
        settings, run, best_params={**best_trial.params, "trees": best_trial.user_attrs["trees"]}
    )
