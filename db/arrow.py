"""Rows of a query as an Arrow table, ten times faster than through a cursor."""

from typing import Any

import connectorx
import pyarrow as pa
from sqlalchemy import Select
from sqlalchemy.dialects.mysql import pymysql

from db.session import session
from utils.errors import Unreachable
from utils.settings import Settings


def read_arrow(settings: Settings, query: Select[Any], *, database: str) -> pa.Table:
    """The rows of `query`, ten times faster than through a cursor.

    Its values are written into the statement, so they must be times, numbers or names that a model file allows.
    """
    address = settings.db_url("pipeline", database, scheme="mysql")
    try:
        rows: pa.Table = connectorx.read_sql(address, statement(query), return_type="arrow")
    except (
        BaseException
    ) as error:  # connectorx panics with a BaseException of its own, and its messages hold the address
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        _explain(settings, query)
        raise Unreachable(
            service="MariaDB", address=settings.mariadb_address, reason=f"reading failed: {type(error).__name__}"
        ) from None
    return rows


def statement(query: Select[Any]) -> str:
    """`query` with its values written into it: connectorx binds no parameters."""
    return str(query.compile(dialect=pymysql.dialect(), compile_kwargs={"literal_binds": True}))


def _explain(settings: Settings, query: Select[Any]) -> None:
    """Ask again through the driver whose errors tell what is wrong; returns where nothing is."""
    with session(settings, "pipeline") as connection:
        connection.execute(query.limit(0))
