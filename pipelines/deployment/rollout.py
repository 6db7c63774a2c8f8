"""Deploy a version: record that it should serve, wait until all workers serve it, and roll back after a failure.

Services load the version in the newest `deploy` or `rollback` row. MLflow's aliases are moved after a row is written.
"""

import logging
import time
from datetime import datetime, timedelta

from sqlalchemy import RowMapping

from db import history
from db.history import deployments
from db.session import session
from db.tables import deployment
from pipelines import registry
from utils.clock import utc_now
from utils.errors import DeploymentFailed, NotFound, NothingToDo
from utils.settings import Settings

HEARTBEAT_POLL = 0.5  # seconds between two reads of the heartbeats
LIVE_TIMEOUT = timedelta(minutes=3)

log = logging.getLogger(__name__)


def roll_out(
    settings: Settings,
    *,
    model: str,
    version: int,
    caused_by: str,
    reason: str,
    now: datetime,
    decision_id: int | None = None,
) -> None:
    """Append the row that makes services load `version`, and move the aliases. A second call changes nothing.

    Raises:
        NotFound: MLflow does not have the version.
        Unreachable.
    """
    sha256 = registry.version_tags(settings, model, version)["bundle_sha256"]
    with session(settings, "pipeline") as connection:
        serving = deployments.desired_row(connection, model)
        if serving is None or serving["version"] != version:
            row = _build_row(
                model, "deploy", version, serving["version"] if serving else None, sha256, caused_by, reason, now
            )
            history.add(connection, deployment, {**row, "promotion_decision_id": decision_id})
    registry.reconcile(settings, model)


def wait_until_live(
    settings: Settings, *, model: str, version: int, caused_by: str, timeout: timedelta = LIVE_TIMEOUT
) -> None:
    """Wait until at least one worker is alive and all of them serve `version`. Record that it is live, or why not.

    Raises:
        DeploymentFailed: a worker refuses the version, or the workers do not serve it in time.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    workers: list[RowMapping] = []
    while time.monotonic() < deadline:
        with session(settings, "pipeline") as connection:
            workers = deployments.instances(connection, model)
        if refusal := next((worker for worker in workers if worker["refused_version"] == version), None):
            reason = f"{refusal['host']} (process {refusal['pid']}) refused it: {refusal['refused_reason']}"
            raise _record_refusal(settings, model, version, reason, caused_by)
        if workers and all(worker["version"] == version for worker in workers):
            return _record_live(settings, model, version, len(workers), caused_by)
        time.sleep(HEARTBEAT_POLL)
    late_workers = [f"{worker['host']} process {worker['pid']}" for worker in workers if worker["version"] != version]
    seconds = timeout.total_seconds()
    reason = (
        f"not serving it after {seconds:.0f} s: {', '.join(late_workers)}"
        if workers
        else f"no service of {model} is alive"
    )
    raise _record_refusal(settings, model, version, reason, caused_by)


def roll_back(settings: Settings, *, model: str, caused_by: str, reason: str, now: datetime) -> int | None:
    """Make the version before the newest deployment serve again, and move the aliases. Return this version.

    If there is no previous version, return None and change nothing.

    Raises:
        NotFound: no version has been deployed.
    """
    with session(settings, "pipeline") as connection:
        serving = deployments.desired_row(connection, model)
        if serving is None:
            raise NotFound(what=f"deployment of {model}", hint="nothing to roll back")
        previous = serving["previous_version"]
        if previous is None:
            return None
        sha256 = registry.version_tags(settings, model, previous)["bundle_sha256"]
        row = _build_row(model, "rollback", previous, serving["version"], sha256, caused_by, reason, now)
        history.add(connection, deployment, row)
    registry.reconcile(settings, model)
    return int(previous)


def undo(settings: Settings, *, model: str, caused_by: str, now: datetime) -> int | None:
    """Record that the deployment of the run `caused_by` failed, and roll it back. Return the version that serves again.

    Raises:
        NothingToDo: the run deployed no version, or its deployment is not the newest row any more.
    """
    with session(settings, "pipeline") as connection:
        newest = deployments.desired_row(connection, model)
    if newest is None or newest["caused_by"] != caused_by or newest["action"] != "deploy":
        raise NothingToDo(model=model, reason="this run rolled nothing out")
    version = int(newest["version"])
    with session(settings, "pipeline") as connection:
        refusal = deployments.refusal(connection, newest)
    reason = f"version {version} did not come up everywhere" + (f": {refusal['reason']}" if refusal else "")
    record_failure(settings, model=model, version=version, caused_by=caused_by, reason=reason, now=now)
    return roll_back(settings, model=model, caused_by=caused_by, reason=reason, now=now)


def record_failure(settings: Settings, *, model: str, version: int, caused_by: str, reason: str, now: datetime) -> None:
    """Append the row which records that the deployment of `version` failed, and why."""
    sha256 = registry.version_tags(settings, model, version)["bundle_sha256"]
    with session(settings, "pipeline") as connection:
        history.add(connection, deployment, _build_row(model, "failed", version, None, sha256, caused_by, reason, now))


def _record_live(settings: Settings, model: str, version: int, workers: int, caused_by: str) -> None:
    with session(settings, "pipeline") as connection:
        desired, live = deployments.desired_row(connection, model), deployments.live(connection, model)
        if desired is None or (live and live["version"] == version and live["id"] > desired["id"]):
            return
        reason = f"{workers} worker(s) serve it"
        sha256, previous = desired["artifact_sha256"], desired["previous_version"]
        row = _build_row(model, "live", version, previous, sha256, caused_by, reason, utc_now())
        history.add(connection, deployment, row)
    log.info("%s: version %d is live: %s", model, version, reason)


def _record_refusal(settings: Settings, model: str, version: int, reason: str, caused_by: str) -> DeploymentFailed:
    """Record why the version is not live, and return the error to raise.

    The rollback runs in another process. It reads the reason from this row.
    """
    with session(settings, "pipeline") as connection:
        desired = deployments.desired_row(connection, model)
        if desired and desired["version"] == version:
            sha256 = desired["artifact_sha256"]
            row = _build_row(model, "refused", version, None, sha256, caused_by, reason, utc_now())
            history.add(connection, deployment, row)
    previous = desired["previous_version"] if desired else None
    return DeploymentFailed(model=model, version=version, reason=reason, serving=previous)


def _build_row(
    model: str, action: str, version: int, previous: int | None, sha256: str, caused_by: str, reason: str, now: datetime
) -> dict[str, object]:
    return {
        "model": model,
        "action": action,
        "version": version,
        "previous_version": previous,
        "artifact_sha256": sha256,
        "caused_by": caused_by,
        "reason": reason[:1000],
        "created_at": now,
    }
