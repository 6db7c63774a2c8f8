"""Find the rows that retention must not drop: rows that a champion was trained on and that no snapshot holds."""

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

KEEP_ALL, KEEP_NONE = datetime(1, 1, 1), datetime(9999, 1, 1)


@dataclass(frozen=True, slots=True)
class Needs:
    """Which rows of a store must stay. Times are UTC.

    labels: label rows from this event time on stay.
    features: feature rows from this event time on stay.
    held_by: the reasons.
    """

    labels: datetime = KEEP_NONE
    features: datetime = KEEP_NONE
    held_by: tuple[str, ...] = ()

    @property
    def by_table(self) -> tuple[datetime, datetime]:
        """The time of the labels table, then the time of the features table."""
        return self.labels, self.features


def needs_of(settings: Settings, spec: ModelSpec) -> Needs:
    """Return the rows of the store that the champion, the version before it, or an active training needs.

    The rows of a version are not needed if the file of its snapshot exists and has the recorded hash. If this database
    has no training for a version, its rows are unknown, so all rows stay.
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
    """Return why the run's snapshot can't replace the rows in the store. Empty if it can."""
    if run.snapshot_id is None:
        return "it has no snapshot"
    try:
        read_snapshot(run.snapshot_id, settings=settings)
    except (NotFound, IntegrityError) as error:
        return str(error)
    return ""


def _with_reason(needs: Needs, run: Run | None, reason: str) -> Needs:
    """Return `needs` extended by the rows that `run` reads. Without a run, all rows are needed."""
    labels = features = KEEP_ALL
    if run and (oldest := look_back_bounds(run)[0]):
        labels, max_age = oldest, run.spec.features.max_age
        features = oldest - max_age if max_age else KEEP_ALL
    return Needs(min(needs.labels, labels), min(needs.features, features), (*needs.held_by, reason))
