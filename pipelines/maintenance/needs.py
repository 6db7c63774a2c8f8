"""What retention must leave in the store: rows that a champion learned from, where no snapshot stands in for them."""

from dataclasses import dataclass
from datetime import datetime

from db.history import in_use
from db.session import session
from pipelines.runs import training_runs
from pipelines.runs.extract import window
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from utils.errors import IntegrityError, NotFound
from utils.settings import Settings

EVER, NEVER = datetime(1, 1, 1), datetime(9999, 1, 1)


@dataclass(frozen=True, slots=True)
class Needs:
    """Labels from `labels` on, and feature rows from `features` on (UTC), must stay; `held_by` says for what."""

    labels: datetime = NEVER
    features: datetime = NEVER
    held_by: tuple[str, ...] = ()

    @property
    def by_table(self) -> tuple[datetime, datetime]:
        return self.labels, self.features


def needs_of(settings: Settings, spec: ModelSpec) -> Needs:
    """What a champion, the version before it, or a training that may be reading now needs of the model's store.

    A snapshot whose file is there with its recorded hash stands in for the rows it was read from. Of a version that no
    training here made nothing is known, so everything is held back for it.
    """
    with session(settings, "maintenance") as connection:
        versions = in_use.champions(connection, spec.name)
        behind = in_use.runs_behind(connection, spec.name, versions)
        at_work = in_use.reading(connection, spec.name)
    needs = Needs()
    for version in sorted(versions):
        if version not in behind:
            needs = _with_reason(needs, None, f"which rows version {version} was trained on is not known here")
            continue
        trained = training_runs.load_run(settings, behind[version])
        if problem := _unproven(settings, trained):
            needs = _with_reason(needs, trained, f"version {version} was trained on them, and {problem}")
    for run_id in at_work:
        needs = _with_reason(needs, training_runs.load_run(settings, run_id), f"training {run_id} is reading")
    return needs


def _unproven(settings: Settings, run: Run) -> str:
    """Why the run's snapshot can't stand in for its rows; empty where it can."""
    if run.snapshot_id is None:
        return "it has no snapshot"
    try:
        read_snapshot(run.snapshot_id, settings=settings)
    except (NotFound, IntegrityError) as error:
        return str(error)
    return ""


def _with_reason(needs: Needs, run: Run | None, why: str) -> Needs:
    labels = features = EVER
    if run and (oldest := window(run)[0]):
        labels, max_age = oldest, run.spec.features.max_age
        features = oldest - max_age if max_age else EVER
    return Needs(min(needs.labels, labels), min(needs.features, features), (*needs.held_by, why))
