"""Maintenance: daily work that adds partitions and deletes old rows and files. Each duty is a function.

Duties do not depend on each other and can be repeated. A duty returns a line that says what was done. It deletes only
data that is certainly not needed any more. If it keeps older data, the line says why. Slow modules are imported inside
the functions, because Airflow imports this module whenever it parses the DAG file.
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

RECENT = timedelta(days=30)  # snapshots and candidates that are younger stay
UNRECORDED = timedelta(days=1)  # a snapshot file without a row stays this long, because the row is written later

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a duty.

    now: the current time, UTC.
    caused_by: the id of the run, or the command, that runs the duty.
    dry_run: whether the duty only reports what it would change.
    hold_inserts: whether inserts may wait while any number of rows is moved out of p_later. If not, at most MOVABLE
        rows are moved.
    """

    settings: Settings
    now: datetime
    caused_by: str
    dry_run: bool = False
    hold_inserts: bool = False

    @property
    def specs(self) -> list[ModelSpec]:
        """The specs of all valid model files. Invalid files are skipped: their DAGs report the error to users."""
        specs = []
        for name in model_names(self.settings.models_dir):
            try:
                specs.append(load_spec(self.settings.models_dir / f"{name}.yaml"))
            except SpecInvalid as error:
                log.warning("skipped an invalid model file: %s", error)
        return specs


def partitions(job: Job) -> str:
    """Add the partitions for rows of the next days and months.

    Raises:
        HeldBack: a table could not be changed without blocking inserts. All other tables are done.
    """
    most_rows = None if job.hold_inserts else MOVABLE

    def add(table: Partitioned) -> str:
        added = add_partitions(job.settings, table, today=job.now.date(), most=most_rows, dry_run=job.dry_run)
        return f"{table.name}: {_count_of(added, 'partition')} up to {added[-1]}" if added else ""

    tables = [PREDICTIONS, *(table for spec in job.specs for table in store_partitions(spec.store))]
    return _run_for_each(tables, add) or "every table has its coming partitions"


def predictions(job: Job) -> str:
    """Drop days of the log that are older than EVERGREEN_KEEP_PREDICTIONS, and the feedback on their predictions.

    Days that monitoring still needs stay.

    Raises:
        HeldBack: a reader kept the log open.
    """
    keep_days = job.settings.keep_predictions
    if not keep_days:
        return "kept for ever: EVERGREEN_KEEP_PREDICTIONS is 0"
    keep_from = job.now - timedelta(days=keep_days)
    needed_from = job.now - max(map(_age_after_monitoring, job.specs), default=timedelta(0))
    before = min(keep_from, needed_from)
    dropped_days = drop_partitions(
        job.settings, PREDICTIONS, before=before, caused_by=job.caused_by, now=job.now, dry_run=job.dry_run
    )
    line = f"{_count_of(dropped_days, 'day')} dropped" + (f", up to {dropped_days[-1]}" if dropped_days else "")
    if needed_from < keep_from:
        line += f"; kept for {(job.now - needed_from).days} days, not {keep_days}: monitoring has yet to judge them"
    if job.dry_run:
        return line
    with session(job.settings, "maintenance") as connection:
        dropped_before = connection.scalar(
            select(func.max(retention.c.dropped_before)).where(retention.c.table_name == PREDICTIONS.name)
        )
    deleted_reports = delete_feedback(job.settings, before=dropped_before) if dropped_before else 0
    return line + (f"; {deleted_reports:,} reports of clients deleted with them" if deleted_reports else "")


def _age_after_monitoring(spec: ModelSpec) -> timedelta:
    """Return the age from which monitoring does not need a prediction of the model any more."""
    monitoring = spec.monitoring
    return spec.label.maturity + monitoring.performance.match + (monitoring.drift.of + 1) * monitoring.window


def features(job: Job) -> str:
    """Drop months of feature and label rows that are older than `keep` in the model file.

    Months with rows that a champion was trained on, and that no snapshot holds, stay.

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
    tables, kept = store_partitions(spec.store), Needs(job.now - keep, job.now - keep - max_age)
    for table, keep_from, needed_from in zip(reversed(tables), kept.by_table, needs.by_table, strict=True):
        dropped_months = drop_partitions(
            job.settings,
            table,
            before=min(keep_from, needed_from),
            caused_by=job.caused_by,
            now=job.now,
            dry_run=job.dry_run,
        )
        if dropped_months:
            lines.append(f"{table.name}: {_count_of(dropped_months, 'month')} dropped up to {dropped_months[-1]}")
    if needs.held_by and (needs.labels < kept.labels or needs.features < kept.features):
        lines.append(f"{spec.name}: older months are held back: {'; '.join(needs.held_by)}")
        log.warning(lines[-1])
    return "; ".join(lines) or f"{spec.name}: nothing is older than it may be"


def batches(job: Job) -> str:
    """Delete the rows of killed loads, and mark their batches as abandoned. A store with a running load is skipped."""
    from db.store.appending import remove_dead

    def remove_killed_loads(spec: ModelSpec) -> str:
        if job.dry_run:
            with session(job.settings, "maintenance") as connection:
                unfinished = (load_batch.c.model == spec.name) & (load_batch.c.state == "open")
                count = connection.scalar(select(func.count()).select_from(load_batch).where(unfinished))
            return f"{spec.name}: {_count_of(range(count or 0), 'unfinished load')}" if count else ""
        killed_loads = remove_dead(job.settings, spec.store)
        if killed_loads is None:
            return f"{spec.name}: a load is under way"
        return f"{spec.name}: {_count_of(range(killed_loads), 'killed load')} removed" if killed_loads else ""

    return _run_for_each(job.specs, remove_killed_loads) or "no load was killed"


def snapshots(job: Job) -> str:
    """Delete the files of snapshots that are not in use, and files without a row.

    A snapshot is in use if it is recent, or if a version in use was trained on it. The rows of snapshots stay.
    """
    since = job.now - RECENT
    with session(job.settings, "maintenance") as connection:
        rows = connection.execute(select(snapshot.c.snapshot_id, snapshot.c.path))
        recorded_paths = {row.snapshot_id: row.path for row in rows}
        used_ids = in_use.snapshots_in_use(connection, since=since)
    used_files = _with_manifests(path for snapshot_id, path in recorded_paths.items() if snapshot_id in used_ids)
    recorded_files = _with_manifests(recorded_paths.values())
    deleted_files, deleted_bytes = [], 0
    for file in sorted(job.settings.snapshots.glob("*")) if job.settings.snapshots.is_dir() else ():
        age = timedelta(seconds=time.time() - file.stat().st_mtime)
        if not file.is_file() or file.name in used_files or (file.name not in recorded_files and age < UNRECORDED):
            continue
        deleted_files.append(file.name)
        deleted_bytes += file.stat().st_size
        if not job.dry_run:
            file.unlink()
    if not deleted_files:
        return "every snapshot is in use or recent"
    return f"{_count_of(deleted_files, 'file')} deleted, {deleted_bytes / 1e6:,.1f} MB"


def _with_manifests(paths: Iterable[str]) -> set[str]:
    """Return the paths of snapshot files and of their manifests."""
    return {name for path in paths for name in (path, str(Path(path).with_suffix(".json")))}


def artifacts(job: Job) -> str:
    """Delete versions from MLflow that were rejected more than a month ago and never served. Their metrics stay."""
    before, lines = job.now - RECENT, []
    with session(job.settings, "maintenance") as connection:
        models = in_use.models(connection)
        rejected = {model: in_use.rejected(connection, model, before=before) for model in models}
    for model in filter(rejected.get, models):
        versions = sorted(registry.versions_without_alias(job.settings, model) & rejected[model])
        for version in versions if not job.dry_run else ():
            registry.discard(job.settings, model, version)
        lines += (
            [f"{model}: {_count_of(versions, 'version')} deleted, {versions[0]} to {versions[-1]}"] if versions else []
        )
    return "; ".join(lines) or "no refused version is a month old"


DUTIES: Mapping[str, Callable[[Job], str]] = {
    duty.__name__: duty for duty in (partitions, predictions, features, batches, snapshots, artifacts)
}


def _run_for_each[T](items: Iterable[T], action: Callable[[T], str]) -> str:
    """Call `action` for each of `items` and join the returned lines.

    Raises:
        HeldBack: the first error, raised after `action` was called for all items.
    """
    lines, errors = [], []
    for item in items:
        try:
            lines.append(action(item))
        except HeldBack as error:
            errors.append(error)
    summary = "; ".join(filter(None, lines))
    if errors:
        log.info("some items were held back; done: %s", summary or "nothing")
        raise errors[0]
    return summary


def _count_of(items: Iterable[object], noun: str) -> str:
    """Return the number of items with the noun in the singular or plural, such as `2 days`."""
    count = len(list(items))
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
