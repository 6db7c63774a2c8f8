"""Verify: check that the store still has exactly the rows of a snapshot."""

from dataclasses import dataclass
from datetime import datetime

from db.history import trainings
from db.session import session
from pipelines.runs import training_runs
from pipelines.runs.extract import look_back_bounds, read_rows
from pipelines.runs.snapshot import check_hash, content_hash, file_rows, find_manifest
from pipelines.runs.training_runs import Run
from utils.errors import NotFound
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a successful verification.

    read_from: `store`, or `file` if retention has dropped rows of the snapshot from the store.
    rows: the number of rows that remain after redaction.
    content_sha256: the `ContentHash` of these rows.
    redacted_rows: the number of deleted rows of forgotten entities.
    note: remarks on retention and redaction. Empty if there are none.
    """

    snapshot_id: str
    model: str
    read_from: str
    rows: int
    content_sha256: str
    redacted_rows: int
    note: str


def verify_snapshot(snapshot_id: str, *, settings: Settings) -> Verification:
    """Read the snapshot's rows again and compare their hash with the recorded hash.

    Raises: IntegrityError if the hashes differ; NotFound; Unreachable; AccessDenied.
    """
    manifest, file = find_manifest(snapshot_id, settings=settings)
    with session(settings, "pipeline") as connection:
        run_id = trainings.run_of_snapshot(connection, snapshot_id)
    if run_id is None:
        raise NotFound(what=f"training run of snapshot {snapshot_id}")
    run = training_runs.load_run(settings, run_id)
    dropped_before = _dropped_before(run, settings)
    parts = read_rows(run, settings=settings) if dropped_before is None else file_rows(file)
    check_hash(snapshot_id, file, content_hash(parts))
    notes = (
        [f"retention dropped rows before {dropped_before:%Y-%m-%d}: the file was checked, not the store"]
        if dropped_before
        else []
    )
    notes += [f"redacted: {file.redacted_rows:,} rows of forgotten entities"] if file.redacted_rows else []
    return Verification(
        snapshot_id,
        manifest.model,
        "file" if dropped_before else "store",
        manifest.row_count - file.redacted_rows,
        file.sha256,
        file.redacted_rows,
        "; ".join(notes),
    )


def _dropped_before(run: Run, settings: Settings) -> datetime | None:
    """The time before which retention has dropped rows from the store. None if the run needs none of these rows."""
    schema, (start, _) = run.spec.store, look_back_bounds(run)
    oldest_feature = start - schema.max_age if start and schema.max_age else None
    with session(settings, "pipeline") as connection:
        bounds = [
            dropped_before
            for table, needed_from in ((schema.labels_table, start), (schema.features_table, oldest_feature))
            if (dropped_before := trainings.dropped_before(connection, table))
            and (not needed_from or needed_from < dropped_before)
        ]
    return max(bounds, default=None)
