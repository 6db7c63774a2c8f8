"""A training: its start, its steps in order, and the clean-up after a failure.

Airflow runs each step as one task. The command line and a replay run all steps in one process (`train`). A step gets
the run's id, reads the run's row, and records its results there. A step imports slow modules itself, because processes
that never train read the order of the steps.
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
class Done:
    """The result of a step.

    summary: one line for people.
    url: MLflow's page of the result, or None.
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
    """Record the run's own decision if it needs one, and claim all open decisions of the model for the run `run_id`.

    `run_type` is Airflow's name for the start of the run. A run that an Asset started already has a decision, recorded
    by monitoring. A run by cron records its own decision, which is to hold if no label is new. A person started any
    other run; it is never held back, and `reason` is the person's reason. See `training_runs.claim` for the rest.

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


def train(
    settings: Settings, run_id: str, *, progress: Callable[[str, Done | None], None] = lambda step, result: None
) -> dict[str, Any]:
    """Run all steps of a run that has begun, and return the row of its verdict. Call `give_up` if a step fails.

    `progress` is called with a step's name and None when the step begins, and with its result when it ends.

    Raises:
        NotFound: the run has no verdict.
        Every error that a step raises.
    """
    try:
        for step in STEPS:
            progress(step, None)
            progress(step, do(step, run_id, settings=settings, now=utc_now()))
    except BaseException:
        give_up(run_id, settings=settings, now=utc_now())
        raise
    with session(settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, run_id)
    if row is None:
        raise NotFound(what=f"verdict on training run {run_id!r}")
    return dict(row)


def do(step: str, run_id: str, *, settings: Settings, now: datetime) -> Done:
    """Run one step of a run. A second call has the same result.

    Raises:
        NotFound: the run does not exist.
        Every error that the step's own function raises.
    """
    return {**STEPS, **SEARCH_STEPS}[step](training_runs.load_run(settings, run_id), settings, now)


def _extract(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.runs.extract import extract
    from pipelines.runs.redact import redact_forgotten

    manifest = extract(run, settings=settings, now=now)
    redact_forgotten(settings, manifest.snapshot_id, model=run.spec.name)
    return Done(f"{manifest.row_count:,} rows in snapshot {manifest.snapshot_id}")


def _validate(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.tracking import open_run
    from pipelines.validation.validate import REPORT_PAGE, validate

    snapshot = _snapshot(run, settings)
    run = open_run(run, snapshot.manifest, settings=settings)
    count = len(validate(run, snapshot, settings=settings, now=now))
    warnings = f", but for {count} warning(s) in {REPORT_PAGE}" if count else ""
    summary = f"{len(run.spec.features.columns)} features and the label keep to the model file{warnings}"
    return Done(summary, run_url(settings, run))


def _search(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.search import search

    finished_run = search(run, _snapshot(run, settings), settings=settings)
    return Done(f"best parameters {finished_run.best_params}", run_url(settings, finished_run))


def _open(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.search import begin

    return Done("the search can be shared", run_url(settings, begin(run, _snapshot(run, settings), settings=settings)))


def _explore(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.search import explore

    complete = explore(run, _snapshot(run, settings), settings=settings)
    return Done(f"{complete} of {run.trials} trials are complete", run_url(settings, run))


def _train(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.fit import train

    version = train(run, _snapshot(run, settings), settings=settings).candidate_version
    return Done(f"candidate is version {version}", version_url(settings, run.model, version))


def _evaluate(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.evaluate import evaluate

    evaluation = evaluate(run, _snapshot(run, settings), settings=settings)
    metric = run.spec.gates.champion.metric
    estimate = evaluation.candidate[metric]
    interval = f"[{estimate.low:.4f}, {estimate.high:.4f}]"
    summary = f"test {metric} {estimate.value:.4f} {interval} over {evaluation.rows:,} rows"
    if evaluation.better_by:
        better_by, champion = evaluation.better_by, evaluation.champion_version
        interval = f"[{better_by.low:+.4f}, {better_by.high:+.4f}]"
        summary += f"; better than version {champion} by {better_by.value:+.4f} {interval}"
    return Done(summary, run_url(settings, run))


def _decide(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.evaluate import load_evaluation
    from pipelines.training.tracking import close_run
    from pipelines.training.verdict import decide_promotion, record_verdict

    evaluation = load_evaluation(run, settings=settings)
    decision = decide_promotion(evaluation, run.spec.gates)
    record_verdict(run, decision, evaluation, settings=settings, now=now)
    training_runs.finish(settings, run.run_id, now=now)
    close_run(run, settings=settings)
    return Done(f"{decision.verdict}: {decision.reason}", run_url(settings, run))


def give_up(run_id: str, *, settings: Settings, now: datetime) -> None:
    """Clean up after a step failed for good: reopen the run's decisions for the next run, and end its MLflow run."""
    from pipelines.training.tracking import close_run

    training_runs.fail(settings, run_id, now=now)
    with suppress(NotFound):  # the step failed before the run existed
        close_run(training_runs.load_run(settings, run_id), settings=settings, failed=True)


def pull(settings: Settings, spec: ModelSpec, *, caused_by: str, now: datetime, address: str | None = None) -> str:
    """Load the new rows of the model's query (see `loading.pull`), and return a line with their number."""
    from pipelines.loading.pull import pull as pull_rows

    report = pull_rows(settings, spec=spec, caused_by=caused_by, now=now, address=address)
    return f"{report.features_added:,} new feature rows and {report.labels_added:,} new labels"


Step = Callable[[Run, Settings, datetime], Done]
# Steps before `search` where several workers share its trials: `open` once, then `explore` once in each worker.
SEARCH_STEPS: dict[str, Step] = {"open": _open, "explore": _explore}
STEPS: dict[str, Step] = {
    "extract": _extract,
    "validate": _validate,
    "search": _search,
    "train": _train,
    "evaluate": _evaluate,
    "decide": _decide,
}


def run_url(settings: Settings, run: Run) -> str:
    """The address of MLflow's page of the run. The part after `#` is a path within MLflow's pages."""
    return f"{settings.mlflow_pages_url}/#/runs/{run.mlflow_run_id}"


def version_url(settings: Settings, model: str, version: int | None) -> str:
    """The address of MLflow's page of a registered version."""
    return f"{settings.mlflow_pages_url}/#/models/{model}/versions/{version}"


def _snapshot(run: Run, settings: Settings) -> "Snapshot":
    from pipelines.runs.snapshot import read_snapshot

    if run.snapshot_id is None:
        raise NotFound(what="snapshot", where=f"training run {run.run_id}", hint="the extract step did not finish")
    return read_snapshot(run.snapshot_id, settings=settings)
