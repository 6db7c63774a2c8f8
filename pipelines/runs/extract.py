"""Extract: read point-in-time rows from the store into an immutable snapshot.

A snapshot is a Parquet file and a manifest. Its rows depend only on the spec hash, `window_end` and `commit_seq`. So
exactly the same rows can be read from the store again. `evergreen snapshot verify` does so and compares the SHA-256.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from db import history
from db.session import session
from db.store.point_in_time import training_rows
from db.tables import snapshot as snapshot_table
from pipelines.runs import training_runs
from pipelines.runs.snapshot import ContentHash, Manifest, find_manifest
from pipelines.runs.training_runs import Run
from utils.errors import EmptyWindow
from utils.settings import Settings


def extract(run: Run, *, settings: Settings, now: datetime) -> Manifest:
    """Write the run's snapshot and return its manifest. A retry returns the existing manifest.

    The rows are processed in chunks, so memory grows by only 100 bytes per label.

    Raises: EmptyWindow if there is no label in the look-back; Unreachable; AccessDenied.
    """
    if run.snapshot_id:
        return find_manifest(run.snapshot_id, settings=settings)[0]
    folder = settings.snapshots
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{run.model}-{run.spec.hash[:12]}-{run.window_end:%Y%m%dT%H%M%S}-{run.commit_seq}.parquet"
    rows, digest = write_rows(read_rows(run, settings=settings), temporary)
    snapshot_id = f"{run.model}-{run.window_end:%Y%m%dT%H%M%S}-{run.commit_seq}-{digest[:12]}"
    manifest = Manifest(snapshot_id, run.model, run.spec.hash, run.window_end, run.commit_seq, rows, digest)
    _publish(manifest, temporary)
    with session(settings, "pipeline") as connection:
        row = {**asdict(manifest), "path": f"{snapshot_id}.parquet", "created_at": now}
        history.add_once(connection, snapshot_table, row)
    training_runs.record(settings, run, snapshot_id=snapshot_id)
    return manifest


def read_rows(run: Run, *, settings: Settings) -> Iterator[pa.Table]:
    """Read the rows of the run's snapshot from the store, in parts (see `db.store.point_in_time.training_rows`).

    Raises: EmptyWindow.
    """
    spec = run.spec
    start, until = look_back_bounds(run)
    parts = training_rows(
        settings, spec.store, start=start, until=until, window_end=run.window_end, commit_seq=run.commit_seq
    )
    first_part = next(parts)
    if not len(first_part):
        raise EmptyWindow(model=run.model, start=start, end=until)
    return chain([first_part], parts)


def look_back_bounds(run: Run) -> tuple[datetime | None, datetime]:
    """The bounds (start, end) in UTC of the event times of a run's labels: after `start` and not after `end`.

    If the model file sets no look-back, `keep` limits it. Otherwise the rows would depend on the time at which
    maintenance last dropped old rows. `start` is None if there is no limit.
    """
    look_back_setting = run.spec.training.window
    look_back = look_back_setting if isinstance(look_back_setting, timedelta) else run.spec.keep
    return run.window_end - look_back if look_back else None, run.window_end - run.spec.label.maturity


def write_rows(parts: Iterator[pa.Table], path: Path) -> tuple[int, str]:
    """Write `parts` to one Parquet file. Return the number of rows and their `ContentHash`."""
    first_part = next(parts)
    content, rows = ContentHash(), 0
    text_columns = [
        field.name
        for field in first_part.schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    with pyarrow.parquet.ParquetWriter(
        path, first_part.schema, compression="zstd", use_dictionary=text_columns
    ) as file:
        for part in chain([first_part], parts):
            content.add(part)
            file.write_table(part)
            rows += len(part)
    return rows, content.hexdigest()


def _publish(manifest: Manifest, temporary: Path) -> None:
    """Rename the complete Parquet file to its final name. Then write the manifest in the same way."""
    folder = temporary.parent
    temporary.replace(folder / f"{manifest.snapshot_id}.parquet")
    temporary_manifest = folder / f".{manifest.snapshot_id}.json"
    temporary_manifest.write_text(
        json.dumps(asdict(manifest), default=lambda moment: moment.isoformat() + "Z", indent=1)
    )
    temporary_manifest.replace(folder / f"{manifest.snapshot_id}.json")
