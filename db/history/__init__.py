"""Histories: rows that are appended, and claimed or marked, but never taken back. One file a kind of row."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select


def add(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Append `row` and return its id (0 for a table without one)."""
    key = connection.execute(insert(table).values(**row)).inserted_primary_key
    return int(key[0]) if key and isinstance(key[0], int) else 0


def add_once(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Append `row` unless its key is there already; what is there stays as it is."""
    key = next(iter(table.primary_key.columns))
    if connection.execute(select(key).where(key == row[key.name])).first() is None:
        add(connection, table, row)
