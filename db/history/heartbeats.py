"""Statements that each worker of a prediction service runs about once a second: the version to serve and heartbeats."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.driver import Link

DESIRED = (
    "SELECT version, artifact_sha256, created_at FROM deployment"
    " WHERE model = %s AND action IN ('deploy', 'rollback') ORDER BY id DESC LIMIT 1"
)
# The version to serve and the version in the shadow, in one round trip a second.
FOLLOWED = (
    f"(SELECT 'champion', {DESIRED.removeprefix('SELECT ')})"  # noqa: S608 - constants only
    " UNION ALL (SELECT 'shadow', version, artifact_sha256, created_at FROM shadow"
    " WHERE model = %s ORDER BY id DESC LIMIT 1)"
)
HEARTBEAT = (
    "INSERT INTO instance (instance_id, model, host, pid, url, started_at, version, serving_since, refused_version,"
    " refused_reason, spool_rows, spool_oldest, shadow_version, shadow_refused, heartbeat_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, UTC_TIMESTAMP(6))"
    " ON DUPLICATE KEY UPDATE version = VALUES(version), serving_since = VALUES(serving_since),"
    " refused_version = VALUES(refused_version), refused_reason = VALUES(refused_reason),"
    " spool_rows = VALUES(spool_rows), spool_oldest = VALUES(spool_oldest),"
    " shadow_version = VALUES(shadow_version), shadow_refused = VALUES(shadow_refused),"
    " heartbeat_at = VALUES(heartbeat_at)"
)
SPOOLING = (
    "SELECT 1 FROM instance WHERE model = %s AND spool_rows > 0"
    " AND heartbeat_at > UTC_TIMESTAMP(6) - INTERVAL 15 SECOND LIMIT 1"
)
REJECTS = (
    "INSERT INTO request_reject (model, day, field, reason, requests) VALUES (%s, UTC_DATE(), %s, %s, %s)"
    " ON DUPLICATE KEY UPDATE requests = requests + VALUES(requests)"
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A version to serve. `since` is the time of its row, UTC."""

    version: int
    sha256: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The state of one worker process of a prediction service. Times are UTC."""

    instance_id: UUID
    model: str
    host: str
    pid: int
    url: str
    started_at: datetime
    version: int | None
    serving_since: datetime | None
    refused_version: int | None
    refused_reason: str | None
    spool_rows: int = 0
    spool_oldest: datetime | None = None
    shadow_version: int | None = None
    shadow_refused: str | None = None


def followed(connection: Link, model: str) -> tuple[Deployment | None, Deployment | None]:
    """Return the version that services of `model` should serve, and the version in the shadow. Each may be None."""
    with connection.cursor() as cursor:
        cursor.execute(FOLLOWED, (model, model))
        by_role = {role: Deployment(*row) for role, *row in cursor.fetchall() if row[0] is not None}
    return by_role.get("champion"), by_role.get("shadow")


def deployment_to_follow(connection: Link, model: str) -> Deployment | None:
    """Return the version that services of `model` should serve, or None before the first deployment."""
    with connection.cursor() as cursor:
        cursor.execute(DESIRED, (model,))
        row = cursor.fetchone()
    return Deployment(*row) if row else None


def wanted_versions(connection: Link, model: str) -> list[int]:
    """Return the version that services of `model` should serve, the previous version and the version in the shadow.

    Return [] before the first deployment.
    """
    with connection.cursor() as cursor:
        cursor.execute(DESIRED.replace("version,", "version, previous_version,", 1), (model,))
        row = cursor.fetchone()
    _, shadow = followed(connection, model)
    numbers = [*row[:2], shadow.version if shadow else None] if row else []
    return [number for number in numbers if number is not None]


def beat(connection: Link, heartbeat: Heartbeat) -> None:
    """Insert or update a worker's row. The time is the database's own."""
    values = [getattr(heartbeat, name) for name in Heartbeat.__slots__]
    with connection.cursor() as cursor:
        cursor.execute(HEARTBEAT, [str(value) if isinstance(value, UUID) else value for value in values])


def is_spooling(connection: Link, model: str) -> bool:
    """Whether a living worker of `model` holds rows that are not in the log yet."""
    with connection.cursor() as cursor:
        return bool(cursor.execute(SPOOLING, (model,)))


def add_rejects(connection: Link, model: str, counts: Mapping[tuple[str, str], int]) -> None:
    """Add refused requests to today's counts. `counts` is by (field, reason)."""
    with connection.cursor() as cursor:
        cursor.executemany(
            REJECTS, [(model, field, reason, requests) for (field, reason), requests in sorted(counts.items())]
        )
