"""Types and columns that the platform's tables share."""

from sqlalchemy import BigInteger, Column, MetaData, String
from sqlalchemy.dialects.mysql import DATETIME

metadata = MetaData()
Moment = DATETIME(fsp=6)
MODEL = String(48)
RUN_ID = String(250)


def id_column() -> Column[int]:
    """Return an auto-increment key."""
    return Column("id", BigInteger, primary_key=True, autoincrement=True)
