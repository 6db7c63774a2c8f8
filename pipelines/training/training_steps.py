"""A training: how it begins, its steps in their order, and how it is given up.

Airflow runs the steps as one task each; the command line and a replay run them in one process (`train`). A step gets
the run's id, reads the run's row, and leaves there what it made. What takes long to import is imported by the step that
needs it, for the order is read by processes that never train.
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
    """What a step did, in a line for people, and where MLflow shows it."""

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
    """Claim every open decision of the model for the run `run_id`, after recording the run's own where it has one.

    `run_type` is what started the run, as Airflow names it. A run that an Asset started has its decision already: the
    one that monitoring recorded. One by cron decides for itself, and holds where no label is new. Any other is a
    person's, who is never held back and says why in `reason`. See `training_runs.claim` for the rest.

    Raises: NothingToDo where no decision is open, or the run's own is to hold.
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
    settings: Settings, run_id: str, *, progress: Callable[[str, Done | None], None] = lambda step, done: None
) -> dict[str, Any]:
    """Do all steps of a run that has begun; returns the row of its verdict. A run that fails is given up.

    `progress` is told the name of each step that begins, with None, and again once it is done.
    Raises: whatever a step raises.
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
    """Do one step of a run; doing it again gives the same.

    Raises: NotFound where there is no such run, and whatever the step's own function raises.
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
    told = len(validate(run, snapshot, settings=settings, now=now))
    warned = f", but for {told} warning(s) in {REPORT_PAGE}" if told else ""
    summary = f"{len(run.spec.features.columns)} features and the label keep to the model file{warned}"
    return Done(summary, run_url(settings, run))


def _search(run: Run, settings: Settings, now: datetime) -> Done:
    from pipelines.training.search import search

    searched = search(run, _snapshot(run, settings), settings=settings)
    return Done(f"best parameters {searched.best_params}", run_url(settings, searched))


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
    found = evaluation.candidate[metric]
    summary = f"test {metric} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}] over {evaluation.rows:,} rows"
    if evaluation.better_by:
        by, than = evaluation.better_by, evaluation.champion_version
        summary += f"; better than version {than} by {by.value:+.4f} [{by.low:+.4f}, {by.high:+.4f}]"
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
    """After a step failed for good: open the run's decisions again for the next run, and end its MLflow run."""
    from pipelines.training.tracking import close_run

    training_runs.fail(settings, run_id, now=now)
    with suppress(NotFound):  # it failed before there was a run
        close_run(training_runs.load_run(settings, run_id), settings=settings, failed=True)


def pull(settings: Settings, spec: ModelSpec, *, caused_by: str, now: datetime, address: str | None = None) -> str:
    """Load the new rows of the model's query (see `loading.pull`); says in a line how many they were."""
    from pipelines.loading.pull import pull as pull_rows

    report = pull_rows(settings, spec=spec, caused_by=caused_by, now=now, address=address)
    return f"{report.features_added:,} new feature rows and {report.labels_added:,} new labels"


Step = Callable[[Run, Settings, datetime], Done]
# Before `search` where several workers share its trials: `open` once, then `explore` once a worker.
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
    """MLflow's page of the run; `#` keeps the address of one server's pages."""
    return f"{settings.mlflow_pages_url}/#/runs/{run.mlflow_run_id}"


def version_url(settings: Settings, model: str, version: int | None) -> str:
    """MLflow's page of a registered version."""
    return f"{settings.mlflow_pages_url}/#/models/{model}/versions/{version}"


def _snapshot(run: Run, settings: Settings) -> "Snapshot":
    from pipelines.runs.snapshot import read_snapshot

    if run.snapshot_id is None:
        raise NotFound(what="snapshot", where=f"training run {run.run_id}", hint="the extract step did not finish")
    return read_snapshot(run.snapshot_id, settings=settings)
