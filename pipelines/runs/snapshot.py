"""Read a snapshot: its manifest, and the rows of its file, which are checked against the recorded hash."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from db.history import trainings
from db.session import session
from utils.errors import IntegrityError, NotFound
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Manifest:
    """The identity of a snapshot. It is also stored as JSON next to the snapshot's file.

    model: the name of the run, which differs from the name in the model file in a replay.
    window_end: UTC. The snapshot has no later event times.
    commit_seq: the snapshot has no rows from later commits of the store.
    row_count: the number of rows before redaction.
    content_sha256: the `ContentHash` of the rows before redaction.
    """

    snapshot_id: str
    model: str
    spec_hash: str
    window_end: datetime
    commit_seq: int
    row_count: int
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot in memory.

    frame: entity_id, event_time, the label and the features. One row per label, sorted by entity and time.
    """

    manifest: Manifest
    frame: pd.DataFrame


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """The file of a snapshot.

    path: the path of the file.
    sha256: the `ContentHash` of its rows, after redaction.
    redacted_rows: the number of deleted rows of forgotten entities.
    """

    path: Path
    sha256: str
    redacted_rows: int


def find_manifest(snapshot_id: str, *, settings: Settings) -> tuple[Manifest, SnapshotFile]:
    """Find the recorded manifest and file of a snapshot.

    Raises: NotFound.
    """
    with session(settings, "pipeline") as connection:
        row = trainings.find_snapshot(connection, snapshot_id)
    if row is None:
        raise NotFound(what=f"snapshot {snapshot_id!r}")
    manifest = Manifest(**{name: row[name] for name in Manifest.__dataclass_fields__})
    sha256 = row["redacted_sha256"] or manifest.content_sha256
    return manifest, SnapshotFile(settings.snapshots / row["path"], sha256, row["redacted_rows"])


def read_snapshot(snapshot_id: str, *, settings: Settings) -> Snapshot:
    """Read a snapshot from its file, and check the rows against the recorded SHA-256.

    Raises: NotFound, IntegrityError.
    """
    manifest, file = find_manifest(snapshot_id, settings=settings)
    table = pa.concat_tables(file_rows(file))
    check_hash(snapshot_id, file, content_hash([table]))
    return Snapshot(manifest, table.to_pandas(self_destruct=True))


def file_rows(file: SnapshotFile) -> Iterator[pa.Table]:
    """Yield the rows of a snapshot's file in parts.

    Raises: NotFound; IntegrityError if the file is not a readable Parquet file.
    """
    path = file.path
    if not path.is_file():
        raise NotFound(what=f"file {path.name}", where=str(path.parent), hint="the snapshot's file is gone")
    try:
        with pyarrow.parquet.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group)
    except pa.ArrowException as error:
        problem = " ".join(str(error).split())[:100]
        raise IntegrityError(what=f"file {path.name}", expected="a Parquet file", found=problem) from None


def check_hash(snapshot_id: str, file: SnapshotFile, actual: str) -> None:
    """Compare `actual`, the hash of the rows that were read, with the recorded hash.

    Raises: IntegrityError if they differ.
    """
    if actual != file.sha256:
        raise IntegrityError(what=f"snapshot {snapshot_id}", expected=file.sha256[:12], found=actual[:12])


def content_hash(parts: Iterable[pa.Table]) -> str:
    """The `ContentHash` of rows in parts."""
    content = ContentHash()
    for part in parts:
        content.add(part)
    return content.hexdigest()


@dataclass(slots=True)
class ContentHash:
    """A SHA-256 over a table: over the name, the kind and the values of each column, ordered by name.

    The hash does not depend on the division into parts, on the compression of the file, or on the version of the
    library that wrote the file. NaN and missing numbers have the same hash, and so have −0 and 0. Numbers are
    little-endian. For a text column, the lengths in bytes (−1 if missing) and the UTF-8 bytes are hashed separately.
    """

    _rows: int = 0
    _columns: dict[str, tuple[bytes, list[Any]]] = field(default_factory=dict)

    def add(self, part: pa.Table) -> None:
        """Add the next rows. All parts have the same columns."""
        self._rows += len(part)
        for name in part.column_names:
            kind, pieces = _to_bytes(part[name])
            _, digests = self._columns.setdefault(name, (kind, [hashlib.sha256() for _ in pieces]))
            for digest, piece in zip(digests, pieces, strict=True):
                digest.update(piece)

    def hexdigest(self) -> str:
        """The hash, in hex, of all rows that were added."""
        table_digest = hashlib.sha256(f"{self._rows}\0".encode())
        for name in sorted(self._columns):
            kind, digests = self._columns[name]
            table_digest.update(name.encode() + b"\0" + kind + b"".join(digest.digest() for digest in digests))
        return table_digest.hexdigest()


def _to_bytes(column: pa.ChunkedArray) -> tuple[bytes, list[Any]]:
    """Return the kind of a column, and its values as one or two buffers."""
    values = column.combine_chunks()
    if pa.types.is_timestamp(values.type):
        return b"time", [np.ascontiguousarray(values.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy(), "<i8")]
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy() + 0.0
        return b"number", [np.ascontiguousarray(np.where(np.isnan(numbers), np.nan, numbers), "<f8")]
    words = values.cast(pa.large_string())
    lengths = pc.fill_null(pc.binary_length(words), -1).to_numpy()
    words = pc.fill_null(words, "")
    _, offsets, characters = words.buffers()
    ends = np.frombuffer(offsets, dtype="<i8")[words.offset : words.offset + len(words) + 1]
    text = memoryview(characters)[ends[0] : ends[-1]] if characters is not None and len(ends) else b""
    return b"text", [np.ascontiguousarray(lengths, "<i8"), text]
