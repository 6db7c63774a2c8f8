"""Tables for the results of batch scoring. The caller chooses the name, and the first batch creates the table.

They have their own database, `evergreen_results`. So a name can't collide with a table of the store or the platform,
and the user that creates and fills them needs no further privileges there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pymysql.constants import ER
from sqlalchemy import BigInteger, Column, Connection, Double, MetaData, PrimaryKeyConstraint, String, Table, Text, text
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import UUID, TypeEngine

from db.session import session
from db.store.schema import CATEGORY_LENGTH
from db.store.store_tables import TABLE_OPTIONS
from utils.errors import DataRefused
from utils.settings import RESULTS_DB, Settings

KEY = ("batch_id", "prediction_id")  # a batch is written, and usually read, as a whole
TYPES: Mapping[pa.DataType, TypeEngine[Any]] = {
    pa.string(): String(CATEGORY_LENGTH),
    pa.float64(): Double(),
    pa.int64(): BigInteger(),
    pa.timestamp("us"): DATETIME(fsp=6),
}
# A class or an entity has a name that no column can have: too long, with a final space, or a duplicate but for case.
NO_COLUMNS = {ER.TOO_LONG_IDENT, ER.WRONG_COLUMN_NAME, ER.DUP_FIELDNAME, ER.TOO_MANY_FIELDS, ER.TOO_BIG_ROWSIZE}
TYPES_BY_NAME: Mapping[str, TypeEngine[Any]] = {"prediction_id": UUID(as_uuid=False), "warnings": Text()}


@contextmanager
def appended(
    settings: Settings, name: str, *, model: str, columns: pa.Schema
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Provide a function that adds rows to the table `name`. The table is created if it does not exist.

    All rows become visible at the end, or none of them. A row has a `batch_id` and the `columns`. A missing value is
    NULL.

    Raises: DataRefused: the table does not hold results of `model` with these columns, or can't have these columns.
    Unreachable, AccessDenied.
    """
    table = _table(name, model=model, columns=columns)
    with session(settings, "pipeline", RESULTS_DB) as connection:
        existing = _existing(connection, table)
        if existing is None:
            _create(connection, table)
            existing = _existing(connection, table)  # another batch may have created it first
        _check_same(table, existing, model=model)
        insert = table.insert()

        def append(rows: Sequence[Mapping[str, Any]]) -> None:
            connection.execute(insert, rows)

        yield append


def _table(name: str, *, model: str, columns: pa.Schema) -> Table:
    return Table(
        name,
        MetaData(),
        *(Column(field.name, TYPES_BY_NAME.get(field.name) or TYPES[field.type]) for field in columns),
        Column("batch_id", UUID()),
        PrimaryKeyConstraint(*KEY),
        schema=RESULTS_DB,
        comment=f"results of {model}",
        **TABLE_OPTIONS,
    )


def _existing(connection: Connection, table: Table) -> tuple[str, set[str]] | None:
    """Return comment and columns of the existing table, or None."""
    query = text(
        "SELECT table_comment AS said, column_name AS name FROM information_schema.tables"
        " JOIN information_schema.columns USING (table_schema, table_name)"
        " WHERE table_schema = :database AND table_name = :name"
    )
    rows = connection.execute(query, {"database": table.schema, "name": table.name}).all()
    return (rows[0].said, {row.name for row in rows}) if rows else None


def _create(connection: Connection, table: Table) -> None:
    try:
        connection.execute(CreateTable(table, if_not_exists=True))
    except DBAPIError as error:
        if error.orig is None or error.orig.args[0] not in NO_COLUMNS:
            raise
        raise DataRefused(
            f"{table.fullname} can't have the results' columns: {error.orig.args[-1]}: write them to a file"
        ) from None


def _check_same(table: Table, existing: tuple[str, set[str]] | None, *, model: str) -> None:
    comment, names = existing or ("", set())
    if comment != table.comment:
        raise DataRefused(f"{table.fullname} is no table of results of {model}: give another name")
    if changed := sorted(names ^ set(table.columns.keys())):
        raise DataRefused(
            f"{table.fullname} has other columns than the results of {model} now ({', '.join(changed)[:200]}):"
            " give another name"
        )
