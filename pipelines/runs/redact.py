"""Redact: delete the rows of forgotten entities from a snapshot's file, and record the deletion in its row."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import Connection, RowMapping, select, text, update

from db.session import session
from db.tables import snapshot, training_run
from db.tombstones import leave_out, tombstones
from pipelines.runs.snapshot import content_hash
from utils.errors import StackError
from utils.settings import Settings

RowFilter = Callable[[pa.Table], pa.Table]  # takes a table with entity_id and event_time, returns the rows to keep
LOCK = {"name": "evergreen_redact", "seconds": 600}


def redact_entity(settings: Settings, model: str, entity_id: str, *, delete: bool) -> int:
    """Count the entity's rows in the snapshots of `model` and of its replays. With `delete`, delete these rows."""
    with session(settings, "pipeline") as connection:
        snapshot_ids = _find_snapshots(connection, model)

    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pc.not_equal(table["entity_id"], entity_id))

    return sum(_redact(settings, snapshot_id, lambda _: keep, delete=delete) for snapshot_id in snapshot_ids)


def redact_forgotten(settings: Settings, snapshot_id: str, *, model: str) -> int:
    """Delete the rows of entities that were forgotten while a new snapshot was read. Return the number of these rows.

    Call this function after the snapshot's row is stored. Then no forgotten row remains: this function finds the
    tombstone, or the process that wrote the tombstone finds the snapshot.

    model: the name in the model file whose store was read.
    """

    def filter_for(connection: Connection) -> RowFilter:
        tombstone_rows = tombstones(connection, model)
        return lambda table: leave_out(tombstone_rows, model, table)[0]

    return _redact(settings, snapshot_id, filter_for, delete=True)


def _find_snapshots(connection: Connection, model: str) -> list[str]:
    """The ids of the snapshots of `model` and its replays. Runs of a replay have another name and the same spec."""
    runs = select(training_run.c.model, training_run.c.spec).distinct()
    names = {model, *(row.model for row in connection.execute(runs) if row.spec["name"] == model)}
    ids = select(snapshot.c.snapshot_id).where(snapshot.c.model.in_(names)).order_by(snapshot.c.snapshot_id)
    return list(connection.scalars(ids))


def _redact(
    settings: Settings, snapshot_id: str, filter_for: Callable[[Connection], RowFilter], *, delete: bool
) -> int:
    """Count the rows of a snapshot's file that the filter of `filter_for` drops. With `delete`, delete these rows.

    The rows are also deleted from a file whose hash does not match the recorded one. The file still counts as damaged.
    """
    with session(settings, "pipeline") as connection:
        if delete and connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), LOCK) != 1:
            raise StackError(
                f"another process has been redacting snapshots for {LOCK['seconds']} s: try again after it"
            )
        row = connection.execute(select(snapshot).where(snapshot.c.snapshot_id == snapshot_id)).mappings().one()
        file = settings.snapshots / row["path"]
        if not file.is_file():
            return 0  # retention has deleted the file
        keys = pq.read_table(file, columns=["entity_id", "event_time"])
        kept_positions = filter_for(connection)(
            keys.append_column("position", pa.array(range(keys.num_rows), pa.int64()))
        )["position"]
        removed_rows = int(keys.num_rows - len(kept_positions))
        if removed_rows and delete:
            _rewrite(settings, row, file, kept_positions.to_numpy())
        if delete:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), LOCK)
    return removed_rows


def _rewrite(settings: Settings, row: RowMapping, file: Path, positions: NDArray[np.int64]) -> None:
    """Replace the file atomically by a file with only its rows at `positions`. Record the new hash in the row."""
    rows = pq.read_table(file)
    remaining = rows.take(pa.array(positions))
    if content_hash([rows]) == (row["redacted_sha256"] or row["content_sha256"]):
        redaction = {"redacted_rows": row["row_count"] - len(remaining), "redacted_sha256": content_hash([remaining])}
        with session(settings, "pipeline") as connection:  # committed before the file is replaced
            connection.execute(update(snapshot).where(snapshot.c.snapshot_id == row["snapshot_id"]).values(**redaction))
    temporary = file.with_name(f".{file.name}.redacted")
    pq.write_table(remaining, temporary, compression="zstd")
    with temporary.open("rb") as temporary_file:
        os.fsync(temporary_file.fileno())
    temporary.replace(file)
