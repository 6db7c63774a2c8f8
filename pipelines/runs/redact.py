"""Redact: take the rows of forgotten entities out of a snapshot's file, and say so in its row."""

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

Keep = Callable[[pa.Table], pa.Table]  # of rows with entity_id and event_time those that stay
LOCK = {"name": "evergreen_redact", "seconds": 600}


def redact_entity(settings: Settings, model: str, entity_id: str, *, delete: bool) -> int:
    """How many rows of the entity are in the snapshots of `model` and of its replays; with `delete` they are gone."""
    with session(settings, "pipeline") as connection:
        ids = _snapshots(connection, model)

    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pc.not_equal(table["entity_id"], entity_id))

    return sum(_redact(settings, snapshot_id, lambda _: keep, delete=delete) for snapshot_id in ids)


def redact_forgotten(settings: Settings, snapshot_id: str, *, model: str) -> int:
    """Take out of a new snapshot what was forgotten while it was read; returns how many rows that were.

    Its row must be there already: then either this sees the tombstone, or who wrote that sees the snapshot. `model` is
    the name of the model file, whose store was read.
    """

    def keeping(connection: Connection) -> Keep:
        known = tombstones(connection, model)
        return lambda table: leave_out(known, model, table)[0]

    return _redact(settings, snapshot_id, keeping, delete=True)


def _snapshots(connection: Connection, model: str) -> list[str]:
    """Ids of those of `model` and of its replays, which have names of their own but runs with the same model file."""
    specs = select(training_run.c.model, training_run.c.spec).distinct()
    names = {model, *(row.model for row in connection.execute(specs) if row.spec["name"] == model)}
    ids = select(snapshot.c.snapshot_id).where(snapshot.c.model.in_(names)).order_by(snapshot.c.snapshot_id)
    return list(connection.scalars(ids))


def _redact(settings: Settings, snapshot_id: str, keeping: Callable[[Connection], Keep], *, delete: bool) -> int:
    """Rewrite a snapshot's file with the rows that `keeping` keeps; returns how many went. One at a time does it.

    The row is first and promises what the file will be: a crash between the two is mended by doing this again. A file
    that is not what its row says loses its rows too, but stays recognisable as damaged.
    """
    with session(settings, "pipeline") as connection:
        if delete and connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), LOCK) != 1:
            raise StackError(
                f"another process has been redacting snapshots for {LOCK['seconds']} s: try again after it"
            )
        row = connection.execute(select(snapshot).where(snapshot.c.snapshot_id == snapshot_id)).mappings().one()
        file = settings.snapshots / row["path"]
        if not file.is_file():
            return 0  # retention has dropped it
        keys = pq.read_table(file, columns=["entity_id", "event_time"])
        places = keeping(connection)(keys.append_column("place", pa.array(range(keys.num_rows), pa.int64())))["place"]
        gone = int(keys.num_rows - len(places))
        if gone and delete:
            _rewrite(settings, row, file, places.to_numpy())
        if delete:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), LOCK)
    return gone


def _rewrite(settings: Settings, row: RowMapping, file: Path, places: NDArray[np.int64]) -> None:
    """Leave the rows at `places` in the file, whole or not at all."""
    rows = pq.read_table(file)
    left = rows.take(pa.array(places))
    if content_hash([rows]) == (row["redacted_sha256"] or row["content_sha256"]):
        redacted = {"redacted_rows": row["row_count"] - len(left), "redacted_sha256": content_hash([left])}
        with session(settings, "pipeline") as connection:  # seen by others before the file is
            connection.execute(update(snapshot).where(snapshot.c.snapshot_id == row["snapshot_id"]).values(**redacted))
    aside = file.with_name(f".{file.name}.redacted")
    pq.write_table(left, aside, compression="zstd")
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    aside.replace(file)
