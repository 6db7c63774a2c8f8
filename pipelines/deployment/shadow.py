"""The shadow: record which challenger scores the requests of a model after the champion has answered them."""

from datetime import datetime

from sqlalchemy import RowMapping

from db import history
from db.history import deployments
from db.session import session
from db.tables import shadow
from pipelines import registry
from utils.errors import NothingToDo
from utils.settings import Settings


def start(settings: Settings, *, model: str, version: int, caused_by: str, now: datetime) -> None:
    """Append the row that puts `version` into the shadow. It replaces the version that is there.

    Raises:
        NotFound: MLflow does not have the version.
        NothingToDo: the version already serves, or no version serves, so there is nothing to compare it with.
        Unreachable.
    """
    sha256 = registry.version_tags(settings, model, version)["bundle_sha256"]
    with session(settings, "pipeline") as connection:
        serving = deployments.desired_row(connection, model)
        if serving is None or serving["version"] == version:
            reason = f"version {version} serves" if serving else "no version serves that it could be compared with"
            raise NothingToDo(model=model, reason=reason)
        row = {"model": model, "version": version, "artifact_sha256": sha256}
        history.add(connection, shadow, {**row, "caused_by": caused_by, "created_at": now})


def stop(settings: Settings, *, model: str, caused_by: str, now: datetime) -> int:
    """Append the row that empties the shadow, and return the version that was in it.

    Raises: NothingToDo if no version is in the shadow; Unreachable.
    """
    with session(settings, "pipeline") as connection:
        row = deployments.shadowing(connection, model)
        if row is None or row["version"] is None:
            raise NothingToDo(model=model, reason="no version is in the shadow")
        history.add(connection, shadow, {"model": model, "caused_by": caused_by, "created_at": now})
    return int(row["version"])


def workers(settings: Settings, model: str) -> list[RowMapping]:
    """Return a row per living worker of `model`: the version that it scores in the shadow, or why it refuses to."""
    with session(settings, "reader") as connection:
        return deployments.instances(connection, model)


def current(settings: Settings, model: str) -> RowMapping | None:
    """Return the row of the version in the shadow, or None if the shadow is empty."""
    with session(settings, "reader") as connection:
        row = deployments.shadowing(connection, model)
    return row if row and row["version"] is not None else None
