"""Extract: point-in-time rows from the store into an immutable snapshot.

A snapshot is a Parquet file and a manifest. (spec hash, window_end, commit_seq) defines its rows, no clock does, so it
can be read from the store again exactly; its SHA-256 says whether it was (`evergreen snapshot verify`).
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
    """The run's snapshot, read from the store the first time; a retry finds it.

    The rows pass through in chunks, so memory does not grow with them but for 100 bytes a label.
    Raises: EmptyWindow where no label lies in the window; Unreachable; AccessDenied.
    """
    if run.snapshot_id:
        return find_manifest(run.snapshot_id, settings=settings)[0]
    folder = settings.snapshots
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{run.model}-{run.spec.hash[:12]}-{run.window_end:%Y%m%dT%H%M%S}-{run.commit_seq}.parquet"
    rows, digest = write_rows(read_rows(run, settings=settings), aside)
    snapshot_id = f"{run.model}-{run.window_end:%Y%m%dT%H%M%S}-{run.commit_seq}-{digest[:12]}"
    manifest = Manifest(snapshot_id, run.model, run.spec.hash, run.window_end, run.commit_seq, rows, digest)
    _name(manifest, aside)
    with session(settings, "pipeline") as connection:
        row = {**asdict(manifest), "path": f"{snapshot_id}.parquet", "created_at": now}
        history.add_once(connection, snapshot_table, row)
    training_runs.record(settings, run, snapshot_id=snapshot_id)
    return manifest


def read_rows(run: Run, *, settings: Settings) -> Iterator[pa.Table]:
    """The rows that define the run's snapshot, from the store, as `db.store.point_in_time.training_rows` gives them.

    Raises: EmptyWindow.
    """
    spec = run.spec
    start, until = window(run)
    parts = training_rows(
        settings, spec.store, start=start, until=until, window_end=run.window_end, commit_seq=run.commit_seq
    )
    first = next(parts)
    if not len(first):
        raise EmptyWindow(model=run.model, start=start, end=until)
    return chain([first], parts)


def window(run: Run) -> tuple[datetime | None, datetime]:
    """The labels of a run lie after the first (None: from the beginning on) and not after the second, UTC.

    "All" ends where `keep` does: else what is read would depend on whether maintenance was here already.
    """
    given = run.spec.training.window
    reach = given if isinstance(given, timedelta) else run.spec.keep
    return run.window_end - reach if reach else None, run.window_end - run.spec.label.maturity


def write_rows(parts: Iterator[pa.Table], path: Path) -> tuple[int, str]:
    """Write `parts` as one Parquet file; returns its rows and their SHA-256 as `ContentHash` gives it."""
    first = next(parts)
    content, rows = ContentHash(), 0
    texts = [
        field.name for field in first.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    with pyarrow.parquet.ParquetWriter(path, first.schema, compression="zstd", use_dictionary=texts) as file:
        for part in chain([first], parts):
            content.add(part)
            file.write_table(part)
            rows += len(part)
    return rows, content.hexdigest()


def _name(manifest: Manifest, aside: Path) -> None:
    """Both files whole or not at all: written aside, then renamed; the manifest comes last."""
    folder = aside.parent
    aside.replace(folder / f"{manifest.snapshot_id}.parquet")
    noted = folder / f".{manifest.snapshot_id}.json"
    noted.write_text(json.dumps(asdict(manifest), default=lambda moment: moment.isoformat() + "Z", indent=1))
    noted.replace(folder / f"{manifest.snapshot_id}.json")
