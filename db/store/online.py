"""The online store: each entity's newest feature row, in `<model>_latest`. Each batch updates it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Table, and_, func, insert, or_, select
from sqlalchemy.dialects.mysql import insert as upsert
from sqlalchemy.schema import CreateTable

from db.driver import Link
from db.store.schema import StoreSchema
from db.store.store_tables import StoreTables
from utils.settings import STORE_DB


def refresh(connection: Connection, tables: StoreTables, batch_id: int) -> None:
    """Write the newest row of each entity in a batch to the online store. Call it once for each connection."""
    features, latest = tables.features, tables.latest
    # A temporary table, because MariaDB evaluates a subquery again for every row of the batch: 26 times slower.
    newest = Table(
        f"newest_{features.name}",
        MetaData(),
        Column("entity_id", latest.c.entity_id.type, nullable=False),
        Column("event_time", latest.c.event_time.type, nullable=False),
        schema=STORE_DB,
        prefixes=["TEMPORARY"],
        mariadb_engine="Aria",
        mariadb_charset="utf8mb4",
        mariadb_collate=latest.dialect_options["mariadb"]["collate"],
    )
    connection.execute(CreateTable(newest))
    batch_times = (
        select(features.c.entity_id, func.max(features.c.event_time))
        .prefix_with("SQL_BIG_RESULT")  # sorts; a temporary table with a key would take six times as long
        .with_hint(features, f"FORCE INDEX ({features.name}_by_batch)", "mariadb")
        .where(features.c.batch_id == batch_id)
        .group_by(features.c.entity_id)
    )
    connection.execute(insert(newest).from_select(["entity_id", "event_time"], batch_times))
    names = [column.name for column in latest.columns]
    same_row = and_(
        features.c.entity_id == newest.c.entity_id,
        features.c.event_time == newest.c.event_time,
        features.c.batch_id == batch_id,
    )
    rows = (
        select(*(features.c[name] for name in names))
        .prefix_with("STRAIGHT_JOIN")
        .join_from(newest, features, same_row)
        .with_hint(features, "FORCE INDEX (PRIMARY)", "mariadb")
    )
    statement = upsert(latest).from_select(names, rows)
    new_row = statement.inserted
    is_newer = or_(
        new_row.event_time > latest.c.event_time,
        and_(new_row.event_time == latest.c.event_time, new_row.available_at >= latest.c.available_at),
    )
    # MariaDB assigns from left to right, so the times that `is_newer` compares come last.
    ordered = [name for name in names if name not in {"entity_id", "available_at", "event_time"}]
    assignments = [(name, func.if_(is_newer, new_row[name], latest.c[name])) for name in (*ordered, "available_at")]
    connection.execute(
        statement.on_duplicate_key_update(
            [*assignments, ("event_time", func.greatest(new_row.event_time, latest.c.event_time))]
        )
    )


def latest(
    link: Link, schema: StoreSchema, entity_ids: Sequence[str], *, at: datetime
) -> dict[str, tuple[Any, ...] | None]:
    """Return the newest feature values of each known entity, in the order of the model file. A missing value is None.

    The values are None if a training would not use the row for a label at `at` (UTC): the row is older than `max_age`,
    or its event time or availability time is later (`db.store.point_in_time.as_known` has the same rule).

    It reads as `evergreen_api` and uses the driver directly. Through SQLAlchemy one entity takes twice as long.
    """
    if not entity_ids:
        return {}
    columns = ", ".join(f"`{name}`" for name in ("entity_id", *(column.name for column in schema.features)))
    places = ", ".join(["%s"] * len(entity_ids))
    oldest = at - schema.max_age if schema.max_age else None
    usable = "event_time <= %s AND available_at <= %s AND event_time >= COALESCE(%s, event_time)"
    with link.cursor() as cursor:
        cursor.execute(
            f"SELECT {columns}, {usable} FROM {STORE_DB}.{schema.latest_table} WHERE entity_id IN ({places})",  # noqa: S608 - names of a model file
            [at, at, oldest, *entity_ids],
        )
        return {row[0]: row[1:-1] if row[-1] else None for row in cursor.fetchall()}
