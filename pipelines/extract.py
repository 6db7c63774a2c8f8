"""Extract: point-in-time rows from the store into an immutable snapshot.

A snapshot is a Parquet file and a manifest. (spec hash, window_end, commit_seq) defines its rows, no clock does, so it
can be read from the store again exactly; its SHA-256 says whether it was.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from db import history
from db.reading import training_rows
from db.session import session
from db.tables import snapshot as snapshot_table
from pipelines import runs
from pipelines.runs import Run
from utils.errors import EmptyWindow, IntegrityError, NotFound
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Manifest:
    """What identifies a snapshot; written beside its file as JSON."""

    snapshot_id: str
    model: str
    spec_hash: str
    window_end: datetime
    commit_seq: int
    row_count: int
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`frame`: entity_id, event_time, the label and the features, one row a label, sorted by entity and time."""

    manifest: Manifest
    frame: pd.DataFrame


def extract(run: Run, *, settings: Settings, now: datetime) -> Snapshot:
    """The run's snapshot, read from the store the first time and from its file after that.

    Raises: EmptyWindow where no label lies in the window; Unreachable; AccessDenied.
    """
    if run.snapshot_id:
        return read_snapshot(run.snapshot_id, settings=settings)
    frame = read_rows(run, settings=settings)
    digest = content_hash(frame)
    snapshot_id = f"{run.model}-{run.window_end:%Y%m%dT%H%M%S}-{run.commit_seq}-{digest[:12]}"
    manifest = Manifest(snapshot_id, run.model, run.spec.hash, run.window_end, run.commit_seq, len(frame), digest)
    _write(manifest, frame, settings.snapshots)
    with session(settings, "pipeline") as connection:
        row = {**asdict(manifest), "path": f"{snapshot_id}.parquet", "created_at": now}
        history.add_once(connection, snapshot_table, row)
    runs.record(settings, run, snapshot_id=snapshot_id)
    return Snapshot(manifest, frame)


def read_rows(run: Run, *, settings: Settings) -> pd.DataFrame:
    """The rows that define the run's snapshot, from the store.

    Raises: EmptyWindow.
    """
    spec = run.spec
    window = spec.training.window
    start = run.window_end - window if isinstance(window, timedelta) else None
    until = run.window_end - spec.label.maturity
    frame: pd.DataFrame = training_rows(
        settings, spec.store, start=start, until=until, window_end=run.window_end, commit_seq=run.commit_seq
    )
    if frame.empty:
        raise EmptyWindow(model=run.model, start=start, end=until)
    return frame


def read_snapshot(snapshot_id: str, *, settings: Settings) -> Snapshot:
    """A snapshot from its file, its content checked against the recorded SHA-256.

    Raises: NotFound, IntegrityError.
    """
    with session(settings, "pipeline") as connection:
        row = history.find_snapshot(connection, snapshot_id)
    if row is None:
        raise NotFound(what=f"snapshot {snapshot_id!r}")
    file = settings.snapshots / row["path"]
    if not file.is_file():
        raise NotFound(what=f"file {row['path']}", where=str(settings.snapshots), hint="the snapshot's file is gone")
    frame = pd.read_parquet(file)
    manifest = Manifest(**{name: row[name] for name in Manifest.__dataclass_fields__})
    if (found := content_hash(frame)) != manifest.content_sha256:
        raise IntegrityError(what=f"snapshot {snapshot_id}", expected=manifest.content_sha256[:12], found=found[:12])
    return Snapshot(manifest, frame)


def content_hash(frame: pd.DataFrame) -> str:
    """SHA-256 in hex over the values of `frame`: columns in name order, each with its name, kind and values.

    It does not depend on the Parquet file's compression, nor on the version of the library that wrote it. One NaN
    stands for all, and −0 for 0.
    """
    digest = hashlib.sha256()
    for name in sorted(frame.columns):
        column = frame[name]
        digest.update(f"{name}\0{len(column)}\0".encode())
        if pd.api.types.is_datetime64_any_dtype(column):
            digest.update(
                b"time\0" + column.astype("datetime64[us]").astype("int64").to_numpy().astype("<i8").tobytes()
            )
        elif pd.api.types.is_numeric_dtype(column):
            numbers = column.to_numpy(dtype="<f8", na_value=np.nan) + 0.0
            digest.update(b"number\0" + np.where(np.isnan(numbers), np.nan, numbers).tobytes())
        else:
            words = pa.array(column, type=pa.large_string(), from_pandas=True)
            lengths = words.is_valid().to_numpy(zero_copy_only=False).astype("<i8")
            lengths = np.where(lengths == 1, pa.compute.binary_length(words).fill_null(0).to_numpy(), -1).astype("<i8")
            digest.update(b"text\0" + lengths.tobytes() + "".join(column.dropna()).encode())
    return digest.hexdigest()


def _write(manifest: Manifest, frame: pd.DataFrame, folder: Path) -> None:
    """Both files whole or not at all: written aside, then renamed; the manifest comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{manifest.snapshot_id}.parquet"
    frame.to_parquet(aside, index=False, compression="zstd")
    aside.replace(folder / f"{manifest.snapshot_id}.parquet")
    noted = folder / f".{manifest.snapshot_id}.json"
    noted.write_text(json.dumps(asdict(manifest), default=lambda moment: moment.isoformat() + "Z", indent=1))
    noted.replace(folder / f"{manifest.snapshot_id}.json")
