"""Rows of deployments and their outcomes, of living workers, and of the shadow."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, func, select, text

from db.tables import (
    deployment,
    instance,
    shadow,
)

DESIRED_ACTIONS = ("deploy", "rollback")

ALIVE = timedelta(seconds=15)  # a worker sends a heartbeat every second or two


def desired_row(connection: Connection, model: str) -> RowMapping | None:
    """Return the newest row that defines the version to serve, or None before the first deployment."""
    rows = select(deployment).where(deployment.c.model == model, deployment.c.action.in_(DESIRED_ACTIONS))
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def champion(connection: Connection, model: str) -> RowMapping | None:
    """Return the row of the desired version, or None without a deployment or after its rollout failed.

    A version during its rollout counts as champion. A candidate that beats the previous version may not beat this one.
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


def refusal(connection: Connection, desired: RowMapping) -> RowMapping | None:
    """Return the newest row that says why services refused the version of `desired`, a deployment row, or None."""
    rows = select(deployment).where(
        deployment.c.model == desired["model"],
        deployment.c.action == "refused",
        deployment.c.version == desired["version"],
        deployment.c.id > desired["id"],
    )
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def live(connection: Connection, model: str) -> RowMapping | None:
    """Return the newest row of a version that went live on all workers, or None."""
    rows = select(deployment).where(deployment.c.model == model, deployment.c.action == "live")
    return connection.execute(rows.order_by(deployment.c.id.desc()).limit(1)).mappings().one_or_none()


def instances(connection: Connection, model: str) -> list[RowMapping]:
    """Return the workers of `model` with a fresh heartbeat by the database's clock, oldest first."""
    fresh = instance.c.heartbeat_at > func.utc_timestamp(6) - text(f"INTERVAL {int(ALIVE.total_seconds())} SECOND")
    rows = select(instance).where(instance.c.model == model, fresh).order_by(instance.c.started_at)
    return list(connection.execute(rows).mappings())


def shadowing(connection: Connection, model: str) -> RowMapping | None:
    """Return the newest shadow row of a model, or None. Its version is None if the shadow was ended."""
    rows = select(shadow).where(shadow.c.model == model).order_by(shadow.c.id.desc()).limit(1)
    return connection.execute(rows).mappings().one_or_none()


def last_shadow(connection: Connection, model: str, *, version: int | None) -> RowMapping | None:
    """Return the last row that put `version`, or any version, into the shadow, or None."""
    rows = select(shadow).where(shadow.c.model == model, shadow.c.version.is_not(None))
    rows = rows if version is None else rows.where(shadow.c.version == version)
    return connection.execute(rows.order_by(shadow.c.id.desc()).limit(1)).mappings().one_or_none()


def first_deployment(connection: Connection, model: str) -> datetime | None:
    earliest = select(func.min(deployment.c.created_at)).where(deployment.c.model == model)
    moment: datetime | None = connection.scalar(earliest)
    return moment
