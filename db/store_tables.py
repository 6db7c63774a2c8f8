"""The store tables of a model (database `evergreen_store`), made from its `StoreSchema`.

`<model>_features` and `<model>_labels` are append-only with the key (entity_id, event_time, available_at), partitioned
by month of event_time where the data has time; `<model>_latest` holds each entity's newest feature row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Double, Index, MetaData, String, Table, Text, text
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.schema import CreateTable, SchemaItem
from sqlalchemy.types import TypeEngine

from db.partitions import by_month, months
from db.schema import CATEGORY_LENGTH, ENTITY_LENGTH, Kind, StoreSchema
from db.schema import Column as SchemaColumn
from db.session import session
from utils.clock import utc_now
from utils.errors import SpecInvalid
from utils.settings import STORE_DB, Settings

COLLATION = "utf8mb4_nopad_bin"  # 'A' is not 'a', and 'a' is not 'a '
KEY = ("entity_id", "event_time", "available_at")
MONTHS_BACK, MONTHS_AHEAD = 60, 6  # partitions a new table starts with; older rows share the first, later ones p_later
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
STORED_AS = {"number": "double", "category": "varchar", "text": "text"}  # the same in information_schema's words


@dataclass(frozen=True, slots=True)
class StoreTables:
    features: Table
    labels: Table
    latest: Table


def store_tables(schema: StoreSchema, *, first_days: Sequence[date] = ()) -> StoreTables:
    """The tables of `schema` as SQLAlchemy knows them; `first_days` are the months to make partitions for."""
    metadata = MetaData()

    def table(name: str, columns: Sequence[SchemaColumn], *, key: Sequence[str], partitioned: bool = False) -> Table:
        parts: list[SchemaItem] = [
            Column("entity_id", String(ENTITY_LENGTH), primary_key="entity_id" in key),
            Column("event_time", DATETIME(fsp=6), primary_key="event_time" in key, nullable=False),
            Column("available_at", DATETIME(fsp=6), primary_key="available_at" in key, nullable=False),
            Column("batch_id", BigInteger, nullable=False),
            *(Column(column.name, TYPES[column.kind], nullable=column != schema.label) for column in columns),
        ]
        if key == KEY:
            parts.append(Index(f"{name}_by_batch", "batch_id"))
        options = dict(TABLE_OPTIONS)
        if partitioned and schema.timed and first_days:
            options["mariadb_partition_by"] = by_month("event_time", first_days)
        return Table(name, metadata, *parts, schema=STORE_DB, **options)

    return StoreTables(
        features=table(schema.features_table, schema.features, key=KEY, partitioned=True),
        labels=table(schema.labels_table, [schema.label], key=KEY, partitioned=True),
        latest=table(schema.latest_table, schema.features, key=KEY[:1]),
    )


def create_tables(settings: Settings, schema: StoreSchema, *, today: date | None = None) -> list[str]:
    """Make what is missing of the model's tables and columns, and say what was made; [] when nothing was missing.

    `today` places the partitions of new tables (60 months back, 6 ahead); it defaults to the current UTC day.
    Raises: SpecInvalid where a column of the store holds another type than the model file now gives it.
    """
    first_days = months(today or utc_now().date(), back=MONTHS_BACK, ahead=MONTHS_AHEAD)
    tables = store_tables(schema, first_days=first_days)
    done: list[str] = []
    with session(settings, "admin", STORE_DB) as connection:
        for table, columns in (
            (tables.features, schema.features),
            (tables.labels, (schema.label,)),
            (tables.latest, schema.features),
        ):
            present = _columns(connection, table.name)
            if not present:
                connection.execute(CreateTable(table))
                for index in table.indexes:
                    index.create(connection)
                done.append(f"made table {table.fullname}")
            else:
                _refuse_changed_types(schema, columns, present)
                done += _add_columns(connection, table, [c.name for c in columns if c.name not in present])
    return done


def _columns(connection: Connection, table: str) -> dict[str, str]:
    """Name to data type of the columns of a store table; empty where there is no such table."""
    found = connection.execute(
        text(
            "SELECT column_name AS column_name, data_type AS data_type FROM information_schema.columns"
            " WHERE table_schema = :database AND table_name = :name"
        ),
        {"database": STORE_DB, "name": table},
    )
    return {row.column_name: row.data_type for row in found}


def _refuse_changed_types(schema: StoreSchema, columns: Sequence[SchemaColumn], present: Mapping[str, str]) -> None:
    changed = [
        (column.name, f"the store already holds it as {present[column.name]}; give the {column.kind} another name")
        for column in columns
        if column.name in present and present[column.name] != STORED_AS[column.kind]
    ]
    if changed:
        raise SpecInvalid(file=f"{schema.model}.yaml", problems=changed)


def _add_columns(connection: Connection, table: Table, names: Sequence[str]) -> list[str]:
    quote = connection.dialect.identifier_preparer
    for name in names:
        column_type = table.c[name].type.compile(connection.dialect)
        connection.execute(
            text(f"ALTER TABLE {quote.format_table(table)} ADD COLUMN {quote.quote(name)} {column_type} NULL")
        )
    return [f"added column {name} to {table.fullname}" for name in names]
