"""Rows of `validation_report`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from db.tables import training_run, validation_report


def save(connection: Connection, row: Mapping[str, Any]) -> None:
    """Write the report of a run. A second report of the same run replaces the first."""
    same_run = validation_report.c.run_id == row["run_id"]
    if connection.execute(select(validation_report.c.run_id).where(same_run)).first():
        connection.execute(update(validation_report).where(same_run).values(**row))
    else:
        connection.execute(insert(validation_report).values(**row))


def last_trained(connection: Connection, *, model: str, run_id: str, window_end: datetime) -> RowMapping | None:
    """Return run_id, window_end and report of the newest finished training whose window ended no later, or None.

    Failed trainings are left out, because their data may have been wrong.
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
