"""The rows that retention must leave in the store: rows that a champion learned from and no snapshot holds."""

from dataclasses import dataclass
from datetime import datetime

from db.history import in_use
from db.session import session
from pipelines.runs import training_runs
from pipelines.runs.extract import look_back_bounds
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from utils.errors import IntegrityError, NotFound
from utils.settings import Settings

EVER, NEVER = datetime(1, 1, 1), datetime(9999, 1, 1)


@dataclass(frozen=True, slots=True)
class Needs:
    """The rows of a store that must stay. Times are UTC.

    labels: labels from this time on stay.
    features: feature rows from this time on stay.
    held_by: the reasons, one text each.
    """

    labels: datetime = NEVER
    features: datetime = NEVER
    held_by: tuple[str, ...] = ()

    @property
    def by_table(self) -> tuple[datetime, datetime]:
        return self.labels, self.features


def needs_of(settings: Settings, spec: ModelSpec) -> Needs:
    """The rows of the model's store that the champion, the version before it, or an active training needs.

    A snapshot replaces its rows in the store if its file exists and has the recorded hash. If no training recorded in
    this database made a version, its rows are unknown, so all rows stay.
    """
    with session(settings, "maintenance") as connection:
        versions = in_use.champions(connection, spec.name)
        run_ids = in_use.runs_behind(connection, spec.name, versions)
        active_runs = in_use.reading(connection, spec.name)
    needs = Needs()
    for version in sorted(versions):
        if version not in run_ids:
            needs = _with_reason(needs, None, f"which rows version {version} was trained on is not known here")
            continue
        run = training_runs.load_run(settings, run_ids[version])
        if problem := _snapshot_problem(settings, run):
            needs = _with_reason(needs, run, f"version {version} was trained on them, and {problem}")
    for run_id in active_runs:
        needs = _with_reason(needs, training_runs.load_run(settings, run_id), f"training {run_id} is reading")
    return needs


def _snapshot_problem(settings: Settings, run: Run) -> str:
    """Why the run's snapshot can't replace its rows in the store. Empty if it can."""
    if run.snapshot_id is None:
        return "it has no snapshot"
    try:
        read_snapshot(run.snapshot_id, settings=settings)
    except (NotFound, IntegrityError) as error:
        return str(error)
    return ""


def _with_reason(needs: Needs, run: Run | None, reason: str) -> Needs:
    labels = features = EVER
    if run and (oldest := look_back_bounds(run)[0]):
        labels, max_age = oldest, run.spec.features.max_age
        features = oldest - max_age if max_age else EVER
    return Needs(min(needs.labels, labels), min(needs.features, features), (*needs.held_by, reason))
