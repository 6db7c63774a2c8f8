"""Verify: whether a snapshot can still be read from the store exactly as it was recorded."""

from dataclasses import dataclass
from datetime import datetime

from db.history import trainings
from db.session import session
from pipelines.runs import training_runs
from pipelines.runs.extract import read_rows, window
from pipelines.runs.snapshot import content_hash, expect, file_rows, find_manifest
from pipelines.runs.training_runs import Run
from utils.errors import NotFound
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Verified:
    """`read_from`: `store`, or `file` where retention has dropped rows that the snapshot was read from."""

    snapshot_id: str
    model: str
    read_from: str
    rows: int
    content_sha256: str
    redacted_rows: int
    note: str


def verify_snapshot(snapshot_id: str, *, settings: Settings) -> Verified:
    """Read the snapshot's rows again and hold them against the recorded hash.

    Raises: IntegrityError where they differ; NotFound; Unreachable, AccessDenied.
    """
    manifest, recorded = find_manifest(snapshot_id, settings=settings)
    with session(settings, "pipeline") as connection:
        run_id = trainings.run_of_snapshot(connection, snapshot_id)
    if run_id is None:
        raise NotFound(what=f"training run of snapshot {snapshot_id}")
    run = training_runs.load_run(settings, run_id)
    dropped = _dropped_before(run, settings)
    parts = read_rows(run, settings=settings) if dropped is None else file_rows(recorded)
    expect(snapshot_id, recorded, content_hash(parts))
    notes = (
        [f"retention dropped rows before {dropped:%Y-%m-%d}: the file was checked, not the store"] if dropped else []
    )
    notes += [f"redacted: {recorded.redacted_rows:,} rows of forgotten entities"] if recorded.redacted_rows else []
    return Verified(
        snapshot_id,
        manifest.model,
        "file" if dropped else "store",
        manifest.row_count - recorded.redacted_rows,
        recorded.sha256,
        recorded.redacted_rows,
        "; ".join(notes),
    )


def _dropped_before(run: Run, settings: Settings) -> datetime | None:
    """Up to when retention has dropped rows of the store, where the run read some of these; else None."""
    schema, (start, _) = run.spec.store, window(run)
    oldest = start - schema.max_age if start and schema.max_age else None
    with session(settings, "pipeline") as connection:
        lost = [
            dropped
            for table, needed_from in ((schema.labels_table, start), (schema.features_table, oldest))
            if (dropped := trainings.dropped_before(connection, table)) and (not needed_from or needed_from < dropped)
        ]
    return max(lost, default=None)
