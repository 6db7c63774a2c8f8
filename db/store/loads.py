"""The rows that committed loads of a model added."""

from datetime import datetime

from sqlalchemy import Connection, func, select

from db.session import session
from db.store.schema import StoreSchema
from db.store.store_tables import store_tables
from db.tables import load_batch
from utils.settings import Settings


def labels_since(connection: Connection, *, model: str, commit_seq: int) -> int:
    """Count the labels that loads after `commit_seq` added."""
    loaded = (
        (load_batch.c.model == model) & (load_batch.c.state == "committed") & (load_batch.c.commit_seq > commit_seq)
    )
    return int(connection.scalar(select(func.coalesce(func.sum(load_batch.c.label_rows), 0)).where(loaded)) or 0)


def feature_times(
    connection: Connection, schema: StoreSchema, *, after: datetime, until: datetime, commit_seq: int
) -> list[datetime]:
    """Return the newest event time of each day with feature rows in (after, until], known at `until`, oldest first."""
    table, batch = store_tables(schema).features, load_batch.c
    rows = table.c
    newest = (
        select(func.max(rows.event_time))
        .join_from(table, load_batch, batch.batch_id == rows.batch_id)
        .where(rows.event_time > after, rows.event_time <= until, rows.available_at <= until)
        .where(batch.state == "committed", batch.commit_seq <= commit_seq)
        .group_by(func.date(rows.event_time))
    )
    return sorted(connection.scalars(newest))


def latest_commit_seq(settings: Settings, model: str) -> int:
    """Return the `commit_seq` of the newest committed load of `model`, or 0 before the first."""
    newest = select(func.coalesce(func.max(load_batch.c.commit_seq), 0)).where(load_batch.c.model == model)
    with session(settings, "pipeline") as connection:
        return int(connection.scalar(newest) or 0)
