"""Who was forgotten: a tombstone holds a hash of the entity and never its id."""

import hashlib
from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, func, select

from db.tables import forgotten


def entity_sha256(model: str, entity_id: str) -> str:
    """What a tombstone holds in place of the id: SHA-256 in hex over model, NUL and entity id."""
    return hashlib.sha256(f"{model}\0{entity_id}".encode()).hexdigest()


def tombstones(connection: Connection, model: str) -> dict[str, datetime]:
    """When each forgotten entity of a model was forgotten last (UTC), by its hash."""
    newest = select(forgotten.c.entity_sha256, func.max(forgotten.c.forgotten_at)).where(forgotten.c.model == model)
    return {row[0]: row[1] for row in connection.execute(newest.group_by(forgotten.c.entity_sha256))}


def was_forgotten(known: Mapping[str, datetime], model: str, entity_id: str, since: datetime) -> bool:
    """Whether an entity was forgotten at `since` (UTC) or later. `known` are the model's tombstones."""
    moment = known.get(entity_sha256(model, entity_id)) if known else None
    return moment is not None and since <= moment


def leave_out(known: Mapping[str, datetime], model: str, rows: pa.Table) -> tuple[pa.Table, int]:
    """`rows` without those of forgotten entities that were true before they were forgotten, and how many those are.

    `known` are the model's tombstones. `rows` has the columns entity_id and event_time; data without time has the same
    event time in all, long ago, so every row of a forgotten entity goes. Costs a microsecond for each different entity.
    """
    if not known:
        return rows, 0
    entities = rows["entity_id"].unique().to_pylist()
    moments = {entity: known.get(entity_sha256(model, entity)) for entity in entities}
    gone = {entity: moment for entity, moment in moments.items() if moment is not None}
    if not gone:
        return rows, 0
    stamp, ids = pa.timestamp("us"), rows["entity_id"].cast(pa.string())
    place = pc.index_in(ids, pa.array(list(gone), pa.string()))
    until = pa.array(list(gone.values()), stamp).take(pc.fill_null(place, 0))
    stays = pc.or_(pc.is_null(place), pc.greater(rows["event_time"].cast(stamp, safe=False), until))
    kept = rows.filter(stays)
    return kept, rows.num_rows - kept.num_rows
