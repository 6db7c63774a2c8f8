"""Histories: rows that are appended, claimed or marked, but never deleted. One file for each kind of row."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select


def add(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Append `row`. Return its id, or 0 for a table without an id."""
    key = connection.execute(insert(table).values(**row)).inserted_primary_key
    return int(key[0]) if key and isinstance(key[0], int) else 0


def add_once(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Append `row` unless its key exists. An existing row stays unchanged."""
    key = next(iter(table.primary_key.columns))
    if connection.execute(select(key).where(key == row[key.name])).first() is None:
        add(connection, table, row)
