"""A training: its beginning, its steps in order, and the clean-up after a failure.

Airflow runs each step as one task. The command line and a replay run all steps in one process (`run_all_steps`). A
step gets the id of a run, reads the run's row, and records its results there. Slow modules are imported inside the
steps, because Airflow imports this module at every parse of a DAG file.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from db.history import decisions
from db.session import session
from pipelines.runs import training_runs
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from utils.clock import utc_now
from utils.errors import NotFound
from utils.settings import Settings

if TYPE_CHECKING:
    from pipelines.runs.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step.

    summary: the result in one line.
    url: the address of the result's page in MLflow. None if there is no page.
    """

    summary: str
    url: str | None = None


def begin(
    settings: Settings,
    spec: ModelSpec,
    *,
    run_id: str,
    run_type: str = "manual",
    reason: str = "by hand",
    window_end: datetime,
    trials: int | None = None,
    model: str | None = None,
    now: datetime,
) -> Run:
    """Begin a training: claim all open decisions to retrain the model for the run `run_id`.

    A run that monitoring starts through an Airflow Asset has a decision already. A scheduled or a manual run records
    a decision of its own first. The decision of a scheduled run is to hold if no label is new.

    run_type: Airflow's type of the run, `scheduled`, `asset_triggered` or `manual`.
    reason: the reason of a manual run.
    window_end, trials, model: as in `training_runs.claim`.

    Raises:
        NothingToDo: no decision is open, or the run's own decision is to hold.
    """
    name = model or spec.name
    if run_type == "scheduled":
        training_runs.record_schedule(settings, spec, caused_by=run_id, now=now)
    elif not run_type.startswith("asset"):
        training_runs.record_decision(settings, model=name, cause="manual", reason=reason, caused_by=run_id, now=now)
    return training_runs.claim(
        settings, spec=spec, run_id=run_id, now=now, window_end=window_end, trials=trials, model=model
    )


def run_all_steps(
    settings: Settings, run_id: str, *, progress: Callable[[str, StepResult | None], None] = lambda step, result: None
) -> dict[str, Any]:
    """Run all steps of a run that has begun, and return the row of its verdict. After a failed step, call `give_up`.

    progress: called with the step's name and None before each step, and with the step's name and result after it.

    Raises:
        NotFound: the run has no verdict.
        Every error that a step raises.
    """
    try:
        for step in STEPS:
            progress(step, None)
            progress(step, run_step(step, run_id, settings=settings, now=utc_now()))
    except BaseException:
        give_up(run_id, settings=settings, now=utc_now())
        raise
    with session(settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, run_id)
    if row is None:
        raise NotFound(what=f"verdict on training run {run_id!r}")
    return dict(row)


def run_step(step: str, run_id: str, *, settings: Settings, now: datetime) -> StepResult:
    """Run one step of a run. A second call returns the same result.

    Raises:
        NotFound: the run does not exist.
        Every error that the step's own function raises.
    """
    return {**STEPS, **SEARCH_STEPS}[step](training_runs.load_run(settings, run_id), settings, now)


def _extract(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.runs.extract import extract
    from pipelines.runs.redact import redact_forgotten

    manifest = extract(run, settings=settings, now=now)
    redact_forgotten(settings, manifest.snapshot_id, model=run.spec.name)
    return StepResult(f"{manifest.row_count:,} rows in snapshot {manifest.snapshot_id}")


def _validate(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.training.tracking import open_run
    from pipelines.validation.validate import REPORT_PAGE, validate

    snapshot = _read_snapshot(run, settings)
    run = open_run(run, snapshot.manifest, settings=settings)
    warning_count = len(validate(run, snapshot, settings=settings, now=now))
    exception = f", but for {warning_count} warning(s) in {REPORT_PAGE}" if warning_count else ""
    summary = f"{len(run.spec.features.columns)} features and the label keep to the model file{exception}"
    return StepResult(summary, run_url(settings, run))


def _search(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.training.search import search

    finished_run = search(run, _read_snapshot(run, settings), settings=settings)
    return StepResult(f"best parameters {finished_run.best_params}", run_url(settings, finished_run))


def _open_search(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.training.search import open_search

    opened_run = open_search(run, _read_snapshot(run, settings), settings=settings)
    return StepResult("the search can be shared", run_url(settings, opened_run))


def _explore(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.training.search import explore

    complete_trials = explore(run, _read_snapshot(run, settings), settings=settings)
    return StepResult(f"{complete_trials} of {run.trials} trials are complete", run_url(settings, run))


def _train(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.training.fit import train

    version = train(run, _read_snapshot(run, settings), settings=settings).candidate_version
    return StepResult(f"candidate is version {version}", version_url(settings, run.model, version))


def _evaluate(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.training.evaluate import evaluate

    evaluation = evaluate(run, _read_snapshot(run, settings), settings=settings)
    metric = run.spec.gates.champion.metric
    estimate = evaluation.candidate[metric]
    interval = f"[{estimate.low:.4f}, {estimate.high:.4f}]"
    summary = f"test {metric} {estimate.value:.4f} {interval} over {evaluation.rows:,} rows"
    if evaluation.better_by:
        better_by, champion = evaluation.better_by, evaluation.champion_version
        interval = f"[{better_by.low:+.4f}, {better_by.high:+.4f}]"
        summary += f"; better than version {champion} by {better_by.value:+.4f} {interval}"
    return StepResult(summary, run_url(settings, run))


def _decide(run: Run, settings: Settings, now: datetime) -> StepResult:
    from pipelines.training.evaluate import load_evaluation
    from pipelines.training.tracking import close_run
    from pipelines.training.verdict import decide_promotion, record_verdict

    evaluation = load_evaluation(run, settings=settings)
    results = decide_promotion(evaluation, run.spec.gates)
    record_verdict(run, results, evaluation, settings=settings, now=now)
    training_runs.finish(settings, run.run_id, now=now)
    close_run(run, settings=settings)
    return StepResult(f"{results.verdict}: {results.reason}", run_url(settings, run))


def give_up(run_id: str, *, settings: Settings, now: datetime) -> None:
    """Clean up after a step that will not be retried: reopen the run's decisions, and end its MLflow run as failed."""
    from pipelines.training.tracking import close_run

    training_runs.fail(settings, run_id, now=now)
    with suppress(NotFound):  # the step failed before the run existed
        close_run(training_runs.load_run(settings, run_id), settings=settings, failed=True)


def pull(settings: Settings, spec: ModelSpec, *, caused_by: str, now: datetime, address: str | None = None) -> str:
    """Load the new rows of the model's query (`loading.pull`). Return a line with the number of rows."""
    from pipelines.loading.pull import pull as pull_rows

    report = pull_rows(settings, spec=spec, caused_by=caused_by, now=now, address=address)
    return f"{report.features_added:,} new feature rows and {report.labels_added:,} new labels"


Step = Callable[[Run, Settings, datetime], StepResult]
# If several workers share a search, `open` runs once before `search`, and then `explore` runs once in each worker.
SEARCH_STEPS: dict[str, Step] = {"open": _open_search, "explore": _explore}
STEPS: dict[str, Step] = {
    "extract": _extract,
    "validate": _validate,
    "search": _search,
    "train": _train,
    "evaluate": _evaluate,
    "decide": _decide,
}


def run_url(settings: Settings, run: Run) -> str:
    """The address of the run's page in MLflow."""
    return f"{settings.mlflow_pages_url}/#/runs/{run.mlflow_run_id}"


def version_url(settings: Settings, model: str, version: int | None) -> str:
    """The address of a registered version's page in MLflow."""
    return f"{settings.mlflow_pages_url}/#/models/{model}/versions/{version}"


def _read_snapshot(run: Run, settings: Settings) -> "Snapshot":
    from pipelines.runs.snapshot import read_snapshot

    if run.snapshot_id is None:
        raise NotFound(what="snapshot", where=f"training run {run.run_id}", hint="the extract step did not finish")
    return read_snapshot(run.snapshot_id, settings=settings)
