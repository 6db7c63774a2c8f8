"""Rows of `validation_report`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from db.tables import training_run, validation_report


def save(connection: Connection, row: Mapping[str, Any]) -> None:
    """Write the report of a run; a second one of the same run takes its place."""
    mine = validation_report.c.run_id == row["run_id"]
    if connection.execute(select(validation_report.c.run_id).where(mine)).first():
        connection.execute(update(validation_report).where(mine).values(**row))
    else:
        connection.execute(insert(validation_report).values(**row))


def last_trained(connection: Connection, *, model: str, run_id: str, window_end: datetime) -> RowMapping | None:
    """run_id, window_end and report of the newest finished training whose window ended no later; None before the first.

    Of a training that failed nobody knows whether its data was right, so it is no measure for others.
    """
    both = validation_report.join(training_run, training_run.c.run_id == validation_report.c.run_id)
    rows = (
        select(training_run.c.run_id, training_run.c.window_end, validation_report.c.report)
        .select_from(both)
        .where(training_run.c.model == model, training_run.c.state == "finished", training_run.c.run_id != run_id)
        .where(training_run.c.window_end <= window_end)
        .order_by(training_run.c.window_end.desc(), training_run.c.started_at.desc())
    )
    return connection.execute(rows.limit(1)).mappings().one_or_none()
