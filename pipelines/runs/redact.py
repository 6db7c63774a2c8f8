"""Redact: delete the rows of forgotten entities from a snapshot's file, and record that in the snapshot's row."""

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

Keep = Callable[[pa.Table], pa.Table]  # filters rows with entity_id and event_time
LOCK = {"name": "evergreen_redact", "seconds": 600}


def redact_entity(settings: Settings, model: str, entity_id: str, *, delete: bool) -> int:
    """Count the rows of the entity in the snapshots of `model` and of its replays. With `delete`, delete them."""
    with session(settings, "pipeline") as connection:
        ids = _snapshots(connection, model)

    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pc.not_equal(table["entity_id"], entity_id))

    return sum(_redact(settings, snapshot_id, lambda _: keep, delete=delete) for snapshot_id in ids)


def redact_forgotten(settings: Settings, snapshot_id: str, *, model: str) -> int:
    """Delete the rows of entities that were forgotten while a new snapshot was read. Return the number of these rows.

    The snapshot's row must exist already. Then either this function sees the tombstone, or the process that wrote the
    tombstone sees the snapshot. `model` is the name of the model file whose store was read.
    """

    def filter_for(connection: Connection) -> Keep:
        tombstone_rows = tombstones(connection, model)
        return lambda table: leave_out(tombstone_rows, model, table)[0]

    return _redact(settings, snapshot_id, filter_for, delete=True)


def _snapshots(connection: Connection, model: str) -> list[str]:
    """The ids of the snapshots of `model` and its replays. Runs of a replay have another name and the same spec."""
    specs = select(training_run.c.model, training_run.c.spec).distinct()
    names = {model, *(row.model for row in connection.execute(specs) if row.spec["name"] == model)}
    ids = select(snapshot.c.snapshot_id).where(snapshot.c.model.in_(names)).order_by(snapshot.c.snapshot_id)
    return list(connection.scalars(ids))


def _redact(settings: Settings, snapshot_id: str, filter_for: Callable[[Connection], Keep], *, delete: bool) -> int:
    """Count the rows of a snapshot's file that the filter of `filter_for` drops. With `delete`, delete them.

    X A file that does not match its row loses the rows too, but still counts as damaged.
    """
    with session(settings, "pipeline") as connection:
        if delete and connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), LOCK) != 1:
            raise StackError(
                f"another process has been redacting snapshots for {LOCK['seconds']} s: try again after it"
            )
        row = connection.execute(select(snapshot).where(snapshot.c.snapshot_id == snapshot_id)).mappings().one()
        file = settings.snapshots / row["path"]
        if not file.is_file():
            return 0  # retention deleted the file
        keys = pq.read_table(file, columns=["entity_id", "event_time"])
        kept_positions = filter_for(connection)(
            keys.append_column("place", pa.array(range(keys.num_rows), pa.int64()))
        )["place"]
        removed = int(keys.num_rows - len(kept_positions))
        if removed and delete:
            _rewrite(settings, row, file, kept_positions.to_numpy())
        if delete:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), LOCK)
    return removed


def _rewrite(settings: Settings, row: RowMapping, file: Path, positions: NDArray[np.int64]) -> None:
    """Replace the file by its rows at `positions`, atomically."""
    rows = pq.read_table(file)
    remaining = rows.take(pa.array(positions))
    if content_hash([rows]) == (row["redacted_sha256"] or row["content_sha256"]):
        redaction = {"redacted_rows": row["row_count"] - len(remaining), "redacted_sha256": content_hash([remaining])}
        with session(settings, "pipeline") as connection:  # committed before the file is replaced
            connection.execute(update(snapshot).where(snapshot.c.snapshot_id == row["snapshot_id"]).values(**redaction))
    temporary = file.with_name(f".{file.name}.redacted")
    pq.write_table(remaining, temporary, compression="zstd")
    with temporary.open("rb") as opened:
        os.fsync(opened.fileno())
    temporary.replace(file)
