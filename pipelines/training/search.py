"""Search: find the best parameters on the validation rows, within the model file's budget of trials and time."""

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
from pipelines.measures.metrics import HIGHER_IS_BETTER, judge, value
from pipelines.runs import training_runs
from pipelines.runs.snapshot import Snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import METRICS, Space
from pipelines.training import tracking
from pipelines.training.fit import newest_label
from pipelines.training.lookback import lengths, recent
from pipelines.training.split import Split, split_rows
from utils.settings import OPTUNA_DB, Settings

MOST_TREES = 500
HEARTBEAT = 60  # seconds
CURVES = ("learn", "validation")

log = logging.getLogger(__name__)


def search(run: Run, snapshot: Snapshot, *, settings: Settings) -> Run:
    """Search, and record the best trial's parameters and number of trees with the run.

    After a crash the search continues its own study.

    Raises: MissingLabels (from the split), Unreachable.
    """
    run = tracking.open_run(run, snapshot.manifest, settings=settings)
    if run.best_params:
        return run
    study, curves = _optimize(run, snapshot, settings=settings, shared=False)
    return _record_best(run, study, curves, settings=settings)


def begin(run: Run, snapshot: Snapshot, *, settings: Settings) -> Run:
    """Create the MLflow run and the study that all workers of `explore` share. Raises: MissingLabels, Unreachable."""
    run = tracking.open_run(run, snapshot.manifest, settings=settings)
    parts = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run))
    _study(run, lengths(parts, spec=run.spec), settings=settings, shared=True)
    return run


def explore(run: Run, snapshot: Snapshot, *, settings: Settings) -> int:
    """Share a search with other workers that call `explore` at the same time. Return the number of complete trials.

    Call `begin` once before. The workers together begin at most the run's number of trials, each once. If a worker is
    killed, `search` runs the missing trials afterwards.

    Raises: MissingLabels, Unreachable.
    """
    study, _ = _optimize(run, snapshot, settings=settings, shared=True)
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _optimize(
    run: Run, snapshot: Snapshot, *, settings: Settings, shared: bool
) -> tuple[optuna.Study, dict[int, dict[str, list[float]]]]:
    """Try parameters until the trials are complete or the time is over. Return the study and loss curves by trial."""
    parts = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run))
    windows = lengths(parts, spec=run.spec)
    study = _study(run, windows, settings=settings, shared=shared)
    budget = run.spec.training.search
    curves: dict[int, dict[str, list[float]]] = {}
    started = time.monotonic()

    def objective(trial: optuna.Trial) -> float:
        if shared and _earlier_trials(trial) >= run.trials:
            study.stop()
            raise optuna.TrialPruned
        scores, trees, curves[trial.number] = try_parameters(trial, parts=parts, windows=windows, run=run)
        trial.set_user_attr("trees", trees)
        metrics = {f"validation_{name}": metric_value for name, metric_value in scores.items()}
        tracking.log_trial(
            run, settings=settings, number=trial.number, params={**trial.params, "trees": trees}, metrics=metrics
        )
        trial_value = scores[budget.metric]
        log.info(
            "trial %d: %s %.4f with %d trees, %.0f s",
            trial.number,
            budget.metric,
            trial_value,
            trees,
            time.monotonic() - started,
        )
        return trial_value

    stop = MaxTrialsCallback(run.trials, states=(TrialState.COMPLETE,))
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if complete < run.trials:
        study.optimize(objective, timeout=budget.timeout.total_seconds(), callbacks=[stop])
    return study, curves


def _earlier_trials(trial: optuna.Trial) -> int:
    """The number of complete or running trials, in all workers, with a smaller number. Optuna numbers them in order."""
    trials = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
    return sum(other.number < trial.number for other in trials)


def try_parameters(
    trial: optuna.Trial, *, parts: Split, windows: list[str], run: Run
) -> tuple[dict[str, float], int, dict[str, list[float]]]:
    """Fit one point of the search space. Return validation metrics, the number of trees kept, and loss curves by tree.

    windows: the look-backs to choose from. Empty if the model file fixes the look-back.
    """
    spec = run.spec
    params = _draw(trial, spec.training.search.space)
    window = trial.suggest_categorical("window", windows) if windows else None
    model = fit(recent(parts.train, window), spec=spec, params=params, trees=MOST_TREES, validation=parts.validation)
    scores = score(model, pool_from_frame(parts.validation, spec=spec, label=False), spec=spec)
    judged = judge(parts.validation[spec.label.column].to_numpy(), scores, spec=spec)
    return {name: value(name, judged) for name in METRICS[spec.task]}, learner.trees(model), learner.curves(model)


def _draw(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Draw a value for each parameter of the space."""
    return {
        name: trial.suggest_int(name, low, int(high))
        if isinstance(low, int)
        else trial.suggest_float(name, low, high, log=name in space.LOG)
        for name, (low, high) in space.ranges.items()
    }


def _study(run: Run, windows: list[str], *, settings: Settings, shared: bool) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
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
    # Two workers with the same seed would repeat each other's trials. A retry must not repeat trials of the first try.
    seed = None if shared else zlib.crc32(f"{run.run_id} {len(trials)}".encode())
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    if windows and not trials:
        # The look-back matters most. Try each once, with the middle of the space for all other parameters.
        for window in windows:
            study.enqueue_trial({"window": window, **_middle(run.spec.training.search.space)})
    return study


def _middle(space: Space) -> dict[str, Any]:
    middle: dict[str, Any] = {}
    for name, (low, high) in space.ranges.items():
        if name in space.LOG:
            middle[name] = math.sqrt(low * high)
        else:
            middle[name] = (low + high) // 2 if isinstance(low, int) else (low + high) / 2
    return middle


def _record_best(
    run: Run, study: optuna.Study, curves: dict[int, dict[str, list[float]]], *, settings: Settings
) -> Run:
    best, trials = study.best_trial, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    loss_curves = {
        f"loss_{name}": losses for name, losses in zip(CURVES, curves.get(best.number, {}).values(), strict=False)
    }
    assert run.mlflow_run_id  # noqa: S101
    tracking.log(
        run.mlflow_run_id,
        settings=settings,
        curves=loss_curves,
        metrics={f"validation_{run.spec.training.search.metric}": float(np.asarray(best.value)), "trials": len(trials)},
    )
    return training_runs.record(settings, run, best_params={**best.params, "trees": best.user_attrs["trees"]})
