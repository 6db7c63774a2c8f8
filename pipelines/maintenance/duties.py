"""Maintenance: what a store needs once a day so that it neither fills up nor stands still. One function a duty.

Duties do not depend on each other, can be repeated, and say in a line what they did. Nothing that is still needed goes:
what is in doubt stays, and the line says so. What takes long to import is imported by the duty that needs it: the DAG
file reads their names at every parse.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select

from db.admin.retention import (
    MOVABLE,
    PREDICTIONS,
    Partitioned,
    add_partitions,
    delete_feedback,
    drop_partitions,
    store_partitions,
)
from db.history import in_use
from db.session import session
from db.tables import load_batch, retention, snapshot
from pipelines import registry
from pipelines.spec import ModelSpec, load_spec, model_names
from utils.errors import HeldBack, SpecInvalid
from utils.settings import Settings

RECENT = timedelta(days=30)  # snapshots and candidates of so long stay, whatever came of them
HALF_WRITTEN = timedelta(days=1)  # a file is there before its row: this long it may be without one

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """`now` is UTC. `dry_run`: say, and change nothing. `hold_inserts`: sort rows of p_later in, however many."""

    settings: Settings
    now: datetime
    caused_by: str
    dry_run: bool = False
    hold_inserts: bool = False

    @property
    def specs(self) -> list[ModelSpec]:
        """Every model file that can be used; the DAGs of a wrong one tell people of it."""
        found = []
        for name in model_names(self.settings.models_dir):
            try:
                found.append(load_spec(self.settings.models_dir / f"{name}.yaml"))
            except SpecInvalid as wrong:
                log.warning("left out: %s", wrong)
        return found


def partitions(job: Job) -> str:
    """Make the partitions that rows of the next days and months will need.

    Raises: HeldBack, after every other table was seen to, where one could not be changed without harm.
    """
    most = None if job.hold_inserts else MOVABLE

    def add(table: Partitioned) -> str:
        names = add_partitions(job.settings, table, today=job.now.date(), most=most, dry_run=job.dry_run)
        return f"{table.name}: {_counted(names, 'partition')} up to {names[-1]}" if names else ""

    tables = [PREDICTIONS, *(table for spec in job.specs for table in store_partitions(spec.store))]
    return _each(tables, add) or "every table has its coming partitions"


def predictions(job: Job) -> str:
    """Drop the days of the log past EVERGREEN_KEEP_PREDICTIONS, and what clients told of their predictions.

    Raises: HeldBack where a reader kept the log open.
    """
    days = job.settings.keep_predictions
    if not days:
        return "kept for ever: EVERGREEN_KEEP_PREDICTIONS is 0"
    asked, needed = job.now - timedelta(days=days), job.now - max(map(_judged_after, job.specs), default=timedelta(0))
    before = min(asked, needed)
    names = drop_partitions(
        job.settings, PREDICTIONS, before=before, caused_by=job.caused_by, now=job.now, dry_run=job.dry_run
    )
    told = f"{_counted(names, 'day')} dropped" + (f", up to {names[-1]}" if names else "")
    if needed < asked:
        told += f"; kept for {(job.now - needed).days} days, not {days}: monitoring has yet to judge them"
    if job.dry_run:
        return told
    with session(job.settings, "maintenance") as connection:
        gone = connection.scalar(
            select(func.max(retention.c.dropped_before)).where(retention.c.table_name == PREDICTIONS.name)
        )
    deleted = delete_feedback(job.settings, before=gone) if gone else 0
    return told + (f"; {deleted:,} reports of clients deleted with them" if deleted else "")


def _judged_after(spec: ModelSpec) -> timedelta:
    """The age at which monitoring is done with a prediction of the model."""
    watched = spec.monitoring
    return spec.label.maturity + watched.performance.match + (watched.drift.of + 1) * watched.window


def features(job: Job) -> str:
    """Drop the months of each store past `keep` in its model file, unless a champion could then not be explained.

    Raises: HeldBack where a reader kept a table open.
    """
    return _each([spec for spec in job.specs if spec.keep], lambda spec: _drop_months(job, spec)) or (
        "kept for ever: no model file has a `keep`"
    )


def _drop_months(job: Job, spec: ModelSpec) -> str:
    keep, max_age = spec.keep, spec.features.max_age
    if keep is None or max_age is None:
        return ""
    from pipelines.maintenance.needs import Needs, needs_of

    needs = needs_of(job.settings, spec)
    told = []
    tables, wanted = store_partitions(spec.store), Needs(job.now - keep, job.now - keep - max_age)
    for table, asked, needed in zip(reversed(tables), wanted.by_table, needs.by_table, strict=True):
        names = drop_partitions(
            job.settings, table, before=min(asked, needed), caused_by=job.caused_by, now=job.now, dry_run=job.dry_run
        )
        told += [f"{table.name}: {_counted(names, 'month')} dropped up to {names[-1]}"] if names else []
    if needs.held_by and (needs.labels < wanted.labels or needs.features < wanted.features):
        told.append(f"{spec.name}: older months are held back: {'; '.join(needs.held_by)}")
        log.warning(told[-1])
    return "; ".join(told) or f"{spec.name}: nothing is older than it may be"


def batches(job: Job) -> str:
    """Remove the rows of loads that were killed, and mark their batches abandoned. A running load is not waited for."""
    from db.store.appending import remove_dead

    def clean(spec: ModelSpec) -> str:
        if job.dry_run:
            with session(job.settings, "maintenance") as connection:
                unfinished = (load_batch.c.model == spec.name) & (load_batch.c.state == "open")
                count = connection.scalar(select(func.count()).select_from(load_batch).where(unfinished))
            return f"{spec.name}: {_counted(range(count or 0), 'unfinished load')}" if count else ""
        removed = remove_dead(job.settings, spec.store)
        if removed is None:
            return f"{spec.name}: a load is under way"
        return f"{spec.name}: {_counted(range(removed), 'killed load')} removed" if removed else ""

    return _each(job.specs, clean) or "no load was killed"


def snapshots(job: Job) -> str:
    """Delete the files of snapshots that no version in use came from, and files that no row knows; rows stay."""
    since = job.now - RECENT
    with session(job.settings, "maintenance") as connection:
        rows = connection.execute(select(snapshot.c.snapshot_id, snapshot.c.path))
        known = {row.snapshot_id: row.path for row in rows}
        used = in_use.snapshots_in_use(connection, since=since)
    kept = _with_manifests(path for snapshot_id, path in known.items() if snapshot_id in used)
    recorded = _with_manifests(known.values())
    gone, freed = [], 0
    for file in sorted(job.settings.snapshots.glob("*")) if job.settings.snapshots.is_dir() else ():
        age = timedelta(seconds=time.time() - file.stat().st_mtime)
        if not file.is_file() or file.name in kept or (file.name not in recorded and age < HALF_WRITTEN):
            continue
        gone.append(file.name)
        freed += file.stat().st_size
        if not job.dry_run:
            file.unlink()
    return f"{_counted(gone, 'file')} deleted, {freed / 1e6:,.1f} MB" if gone else "every snapshot is in use or recent"


def _with_manifests(paths: Iterable[str]) -> set[str]:
    return {name for path in paths for name in (path, str(Path(path).with_suffix(".json")))}


def artifacts(job: Job) -> str:
    """Delete from MLflow the versions that were refused a month ago and never served; their runs' metrics stay."""
    before, told = job.now - RECENT, []
    with session(job.settings, "maintenance") as connection:
        models = in_use.models(connection)
        refused = {model: in_use.rejected(connection, model, before=before) for model in models}
    for model in filter(refused.get, models):
        going = sorted(registry.versions_without_alias(job.settings, model) & refused[model])
        for version in going if not job.dry_run else ():
            registry.discard(job.settings, model, version)
        told += [f"{model}: {_counted(going, 'version')} deleted, {going[0]} to {going[-1]}"] if going else []
    return "; ".join(told) or "no refused version is a month old"


DUTIES: Mapping[str, Callable[[Job], str]] = {
    duty.__name__: duty for duty in (partitions, predictions, features, batches, snapshots, artifacts)
}


def _each[T](items: Iterable[T], do: Callable[[T], str]) -> str:
    """What `do` says of each of `items`. Raises: the first HeldBack, after all of them."""
    told, held = [], []
    for item in items:
        try:
            told.append(do(item))
        except HeldBack as back:
            held.append(back)
    done = "; ".join(filter(None, told))
    if held:
        log.info("done all the same: %s", done or "nothing")
        raise held[0]
    return done


def _counted(things: Iterable[object], noun: str) -> str:
    count = len(list(things))
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
