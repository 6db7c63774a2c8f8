"""Tombstones of forgotten entities. A tombstone holds a hash of the entity and never its id."""

import hashlib
from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, func, select

from db.tables import forgotten


def entity_sha256(model: str, entity_id: str) -> str:
    """Return the hash in a tombstone: SHA-256 in hex over model, NUL and entity id."""
    return hashlib.sha256(f"{model}\0{entity_id}".encode()).hexdigest()


def tombstones(connection: Connection, model: str) -> dict[str, datetime]:
    """Return the hash of each forgotten entity of a model with the last time it was forgotten (UTC)."""
    newest = select(forgotten.c.entity_sha256, func.max(forgotten.c.forgotten_at)).where(forgotten.c.model == model)
    return {row[0]: row[1] for row in connection.execute(newest.group_by(forgotten.c.entity_sha256))}


def was_forgotten(forgotten_times: Mapping[str, datetime], model: str, entity_id: str, since: datetime) -> bool:
    """Whether an entity was forgotten at `since` (UTC) or later. `forgotten_times` is the result of `tombstones`."""
    moment = forgotten_times.get(entity_sha256(model, entity_id)) if forgotten_times else None
    return moment is not None and since <= moment


def leave_out(forgotten_times: Mapping[str, datetime], model: str, rows: pa.Table) -> tuple[pa.Table, int]:
    """Remove rows of forgotten entities whose event time is not after the forgetting. Return the rest and the count.

    `forgotten_times` is the result of `tombstones`. `rows` has the columns entity_id and event_time. Data without time
    has one event time, long ago, so every row of a forgotten entity is removed. It takes a microsecond for each
    distinct entity.
    """
    if not forgotten_times:
        return rows, 0
    entities = rows["entity_id"].unique().to_pylist()
    moments = {entity: forgotten_times.get(entity_sha256(model, entity)) for entity in entities}
    matches = {entity: moment for entity, moment in moments.items() if moment is not None}
    if not matches:
        return rows, 0
    stamp, ids = pa.timestamp("us"), rows["entity_id"].cast(pa.string())
    place = pc.index_in(ids, pa.array(list(matches), pa.string()))
    until = pa.array(list(matches.values()), stamp).take(pc.fill_null(place, 0))
    keep_mask = pc.or_(pc.is_null(place), pc.greater(rows["event_time"].cast(stamp, safe=False), until))
    remaining = rows.filter(keep_mask)
    return remaining, rows.num_rows - remaining.num_rows
