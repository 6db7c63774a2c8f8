"""Rows that say what should serve and what came of it, which services are alive, and what is in the shadow."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, func, select, text

from db.tables import (
    deployment,
    instance,
    shadow,
)

DESIRING = ("deploy", "rollback")

ALIVE = timedelta(seconds=15)  # a worker's heartbeat comes every second or two


def desired_row(connection: Connection, model: str) -> RowMapping | None:
    """The newest deployment row that says what should serve, or None before the first."""
    rows = select(deployment).where(deployment.c.model == model, deployment.c.action.in_(DESIRING))
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def champion(connection: Connection, model: str) -> RowMapping | None:
    """The desired version's row, unless that version failed to come up; None where nothing has been deployed well.

    A version that is being rolled out counts: a candidate that beats the one before it is not yet shown to beat it.
    """
    row = desired_row(connection, model)
    if row is None:
        return None
    failed = select(deployment.c.id).where(
        deployment.c.model == model,
        deployment.c.action == "failed",
        deployment.c.version == row["version"],
        deployment.c.id > row["id"],
    )
    return None if connection.execute(failed.limit(1)).first() else row


def refusal(connection: Connection, wanted: RowMapping) -> RowMapping | None:
    """The newest row that says why services did not take the version of `wanted`, a deployment row; or None."""
    rows = select(deployment).where(
        deployment.c.model == wanted["model"],
        deployment.c.action == "refused",
        deployment.c.version == wanted["version"],
        deployment.c.id > wanted["id"],
    )
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def live(connection: Connection, model: str) -> RowMapping | None:
    """The newest deployment row whose version came up everywhere, or None."""
    rows = select(deployment).where(deployment.c.model == model, deployment.c.action == "live")
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def instances(connection: Connection, model: str) -> list[RowMapping]:
    """Workers of `model` whose heartbeat is fresh by the database's own clock, the oldest first."""
    fresh = instance.c.heartbeat_at > func.utc_timestamp(6) - text(f"INTERVAL {int(ALIVE.total_seconds())} SECOND")
    rows = select(instance).where(instance.c.model == model, fresh).order_by(instance.c.started_at)
    return list(connection.execute(rows).mappings())


def shadowing(connection: Connection, model: str) -> RowMapping | None:
    """The newest shadow row of a model, or None; its version is None where the shadow was ended."""
    rows = select(shadow).where(shadow.c.model == model).order_by(shadow.c.id.desc()).limit(1)
    return connection.execute(rows).mappings().one_or_none()


def last_shadow(connection: Connection, model: str, *, version: int | None) -> RowMapping | None:
    """The row that last put `version`, or any one, into the shadow; None where none did."""
    rows = select(shadow).where(shadow.c.model == model, shadow.c.version.is_not(None))
    rows = rows if version is None else rows.where(shadow.c.version == version)
    return connection.execute(rows.order_by(shadow.c.id.desc()).limit(1)).mappings().one_or_none()


def first_deployment(connection: Connection, model: str) -> datetime | None:
    earliest = select(func.min(deployment.c.created_at)).where(deployment.c.model == model)
    found: datetime | None = connection.scalar(earliest)
    return found
