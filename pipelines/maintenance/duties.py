"""Maintenance: daily work that adds partitions to a store and deletes old rows and files. One function a duty.

Duties do not depend on each other and can be repeated. Each returns a line that says what it did. A duty deletes only
data that is surely not needed any more; the line names data that it held back. A duty imports slow modules itself,
because the DAG file reads the names of the duties at every parse.
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

RECENT = timedelta(days=30)  # younger snapshots and candidates always stay
HALF_WRITTEN = timedelta(days=1)  # a file is written before its row, and may be without it for this long

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a duty.

    now: UTC.
    caused_by: the id of the run, or the command, that runs the duty.
    dry_run: whether the duty only reports what it would change.
    hold_inserts: whether any number of rows may be moved out of p_later while inserts wait.
    """

    settings: Settings
    now: datetime
    caused_by: str
    dry_run: bool = False
    hold_inserts: bool = False

    @property
    def specs(self) -> list[ModelSpec]:
        """Every valid model file. The DAGs of an invalid file report it to people."""
        specs = []
        for name in model_names(self.settings.models_dir):
            try:
                specs.append(load_spec(self.settings.models_dir / f"{name}.yaml"))
            except SpecInvalid as error:
                log.warning("skipped a model file: %s", error)
        return specs


def partitions(job: Job) -> str:
    """Add the partitions for rows of the next days and months.

    Raises:
        HeldBack: a table could not be changed without harm. All other tables are done.
    """
    most = None if job.hold_inserts else MOVABLE

    def add(table: Partitioned) -> str:
        names = add_partitions(job.settings, table, today=job.now.date(), most=most, dry_run=job.dry_run)
        return f"{table.name}: {_counted(names, 'partition')} up to {names[-1]}" if names else ""

    tables = [PREDICTIONS, *(table for spec in job.specs for table in store_partitions(spec.store))]
    return _run_for_each(tables, add) or "every table has its coming partitions"


def predictions(job: Job) -> str:
    """Drop the days of the log past EVERGREEN_KEEP_PREDICTIONS, and the clients' reports on those predictions.

    Raises:
        HeldBack: a reader kept the log open.
    """
    days = job.settings.keep_predictions
    if not days:
        return "kept for ever: EVERGREEN_KEEP_PREDICTIONS is 0"
    keep_from = job.now - timedelta(days=days)
    needed_from = job.now - max(map(_judgement_age, job.specs), default=timedelta(0))
    before = min(keep_from, needed_from)
    names = drop_partitions(
        job.settings, PREDICTIONS, before=before, caused_by=job.caused_by, now=job.now, dry_run=job.dry_run
    )
    text = f"{_counted(names, 'day')} dropped" + (f", up to {names[-1]}" if names else "")
    if needed_from < keep_from:
        text += f"; kept for {(job.now - needed_from).days} days, not {days}: monitoring has yet to judge them"
    if job.dry_run:
        return text
    with session(job.settings, "maintenance") as connection:
        dropped_before = connection.scalar(
            select(func.max(retention.c.dropped_before)).where(retention.c.table_name == PREDICTIONS.name)
        )
    deleted = delete_feedback(job.settings, before=dropped_before) if dropped_before else 0
    return text + (f"; {deleted:,} reports of clients deleted with them" if deleted else "")


def _judgement_age(spec: ModelSpec) -> timedelta:
    """The age at which monitoring does not need a prediction of the model any more."""
    monitoring = spec.monitoring
    return spec.label.maturity + monitoring.performance.match + (monitoring.drift.of + 1) * monitoring.window


def features(job: Job) -> str:
    """Drop the months of each store past `keep` in its model file, except rows that explain a champion.

    Raises:
        HeldBack: a reader kept a table open.
    """
    return _run_for_each([spec for spec in job.specs if spec.keep], lambda spec: _drop_months(job, spec)) or (
        "kept for ever: no model file has a `keep`"
    )


def _drop_months(job: Job, spec: ModelSpec) -> str:
    keep, max_age = spec.keep, spec.features.max_age
    if keep is None or max_age is None:
        return ""
    from pipelines.maintenance.needs import Needs, needs_of

    needs = needs_of(job.settings, spec)
    lines = []
    tables, requested = store_partitions(spec.store), Needs(job.now - keep, job.now - keep - max_age)
    for table, keep_from, needed_from in zip(reversed(tables), requested.by_table, needs.by_table, strict=True):
        names = drop_partitions(
            job.settings,
            table,
            before=min(keep_from, needed_from),
            caused_by=job.caused_by,
            now=job.now,
            dry_run=job.dry_run,
        )
        lines += [f"{table.name}: {_counted(names, 'month')} dropped up to {names[-1]}"] if names else []
    if needs.held_by and (needs.labels < requested.labels or needs.features < requested.features):
        lines.append(f"{spec.name}: older months are held back: {'; '.join(needs.held_by)}")
        log.warning(lines[-1])
    return "; ".join(lines) or f"{spec.name}: nothing is older than it may be"


def batches(job: Job) -> str:
    """Remove the rows of killed loads, and mark their batches abandoned. Do not wait for a running load."""
    from db.store.appending import remove_dead

    def clean(spec: ModelSpec) -> str:
        if job.dry_run:
            with session(job.settings, "maintenance") as connection:
                unfinished = (load_batch.c.model == spec.name) & (load_batch.c.state == "open")
                count = connection.scalar(select(func.count()).select_from(load_batch).where(unfinished))
            return f"{spec.name}: {_counted(range(count or 0), 'unfinished load')}" if count else ""
        killed = remove_dead(job.settings, spec.store)
        if killed is None:
            return f"{spec.name}: a load is under way"
        return f"{spec.name}: {_counted(range(killed), 'killed load')} removed" if killed else ""

    return _run_for_each(job.specs, clean) or "no load was killed"


def snapshots(job: Job) -> str:
    """Delete files of snapshots that no version in use was trained on, and files without a row. Rows stay."""
    since = job.now - RECENT
    with session(job.settings, "maintenance") as connection:
        rows = connection.execute(select(snapshot.c.snapshot_id, snapshot.c.path))
        recorded_paths = {row.snapshot_id: row.path for row in rows}
        used_ids = in_use.snapshots_in_use(connection, since=since)
    used_files = _with_manifests(path for snapshot_id, path in recorded_paths.items() if snapshot_id in used_ids)
    recorded_files = _with_manifests(recorded_paths.values())
    files, size = [], 0
    for file in sorted(job.settings.snapshots.glob("*")) if job.settings.snapshots.is_dir() else ():
        age = timedelta(seconds=time.time() - file.stat().st_mtime)
        if not file.is_file() or file.name in used_files or (file.name not in recorded_files and age < HALF_WRITTEN):
            continue
        files.append(file.name)
        size += file.stat().st_size
        if not job.dry_run:
            file.unlink()
    return f"{_counted(files, 'file')} deleted, {size / 1e6:,.1f} MB" if files else "every snapshot is in use or recent"


def _with_manifests(paths: Iterable[str]) -> set[str]:
    return {name for path in paths for name in (path, str(Path(path).with_suffix(".json")))}


def artifacts(job: Job) -> str:
    """Delete versions from MLflow that were rejected a month ago and never served. The metrics of their runs stay."""
    before, lines = job.now - RECENT, []
    with session(job.settings, "maintenance") as connection:
        models = in_use.models(connection)
        refused = {model: in_use.rejected(connection, model, before=before) for model in models}
    for model in filter(refused.get, models):
        versions = sorted(registry.versions_without_alias(job.settings, model) & refused[model])
        for version in versions if not job.dry_run else ():
            registry.discard(job.settings, model, version)
        lines += (
            [f"{model}: {_counted(versions, 'version')} deleted, {versions[0]} to {versions[-1]}"] if versions else []
        )
    return "; ".join(lines) or "no refused version is a month old"


DUTIES: Mapping[str, Callable[[Job], str]] = {
    duty.__name__: duty for duty in (partitions, predictions, features, batches, snapshots, artifacts)
}


def _run_for_each[T](items: Iterable[T], action: Callable[[T], str]) -> str:
    """Call `action` for each of `items` and join the returned lines.

    Raises:
        HeldBack: the first one raised, after all items were tried.
    """
    lines, errors = [], []
    for item in items:
        try:
            lines.append(action(item))
        except HeldBack as error:
            errors.append(error)
    text = "; ".join(filter(None, lines))
    if errors:
        log.info("held back in part, done: %s", text or "nothing")
        raise errors[0]
    return text


def _counted(items: Iterable[object], noun: str) -> str:
    count = len(list(items))
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
