"""The store tables of a model (database `evergreen_store`), derived from its `StoreSchema`.

`<model>_features` and `<model>_labels` are append-only with the key (entity_id, event_time, available_at), partitioned
by month of event_time if the data has time. `<model>_latest` holds each entity's newest feature row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, MetaData, String, Table, Text
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from db.partitions import by_month
from db.store.schema import CATEGORY_LENGTH, ENTITY_LENGTH, Kind, StoreSchema
from db.store.schema import Column as SchemaColumn
from utils.settings import STORE_DB

COLLATION = "utf8mb4_nopad_bin"  # 'A' differs from 'a', and 'a' from 'a '
KEY = ("entity_id", "event_time", "available_at")
MONTHS_BACK, MONTHS_AHEAD = 60, 6  # partitions of a new table; older rows are in the first, later rows in p_later
TYPES: Mapping[Kind, type[TypeEngine[Any]] | TypeEngine[Any]] = {
    "number": Double,
    "category": String(CATEGORY_LENGTH),
    "text": Text,
}
TABLE_OPTIONS: Mapping[str, Any] = {
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": COLLATION,
}


@dataclass(frozen=True, slots=True)
class StoreTables:
    features: Table
    labels: Table
    latest: Table


def load_lock(model: str) -> str:
    """Return the name of MariaDB's lock that a load of `model` holds."""
    return f"evergreen_load_{model}"


def entity_note(entity: str) -> str | None:
    """Return the comment of a store table, which names the entity of its rows."""
    return f"entity: {entity}" if entity else None


def store_tables(schema: StoreSchema, *, first_days: Sequence[date] = ()) -> StoreTables:
    """Return the tables of `schema` in SQLAlchemy. `first_days` are the months to make partitions for."""
    metadata = MetaData()

    def table(name: str, columns: Sequence[SchemaColumn], *, key: Sequence[str], partitioned: bool = False) -> Table:
        items: list[SchemaItem] = [
            Column("entity_id", String(ENTITY_LENGTH), primary_key="entity_id" in key),
            Column("event_time", DATETIME(fsp=6), primary_key="event_time" in key, nullable=False),
            Column("available_at", DATETIME(fsp=6), primary_key="available_at" in key, nullable=False),
            Column("batch_id", BigInteger, nullable=False),
            *(Column(column.name, TYPES[column.kind], nullable=column != schema.label) for column in columns),
        ]
        if key == KEY:
            items.append(Index(f"{name}_by_batch", "batch_id"))
        options = {**TABLE_OPTIONS, "comment": entity_note(schema.entity)}
        if partitioned and schema.timed and first_days:
            options["mariadb_partition_by"] = by_month("event_time", first_days)
        return Table(name, metadata, *items, schema=STORE_DB, **options)

    return StoreTables(
        features=table(schema.features_table, schema.features, key=KEY, partitioned=True),
        labels=table(schema.labels_table, [schema.label], key=KEY, partitioned=True),
        latest=table(schema.latest_table, schema.features, key=KEY[:1]),
    )
