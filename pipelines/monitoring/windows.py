"""Monitor: count the services' predictions window by window, and detect drift and broken sources.

Windows are disjoint and lie on a fixed grid: the n-th window of length L always begins n·L after 1970-01-01 UTC. Each
row of the log is read once, and all later work uses the counts. All results are append-only, so a repeated step changes
nothing.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import pyarrow.compute as pc
from sqlalchemy import RowMapping

from db.history import deployments, window_rows
from db.log import reading
from db.session import session
from db.tables import drift_result, window_profile
from pipelines.measures.defects import find_defects
from pipelines.measures.drift import measure_drift, worst_first
from pipelines.monitoring.counts import WindowCounts, summed, unseen
from pipelines.monitoring.references import References
from pipelines.spec import ModelSpec
from utils.errors import NotFound
from utils.settings import Settings

EPOCH = datetime(1970, 1, 1)
SETTLE = timedelta(seconds=5)  # a prediction's row is committed within its service's timeouts
BACKLOG = 100  # windows; older ones that were never counted are skipped

log = logging.getLogger(__name__)


def grid(moment: datetime, window: timedelta) -> datetime:
    """Return the last border between two windows at or before `moment`."""
    return moment - (moment - EPOCH) % window


def count_windows(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> int:
    """Count the rows of every complete window that ended by `until` and is not counted. Return the number of windows.

    Wait until the newest rows are committed. Before the first deployment, count nothing.

    Raises: Unreachable.
    """
    window = spec.monitoring.window
    with session(settings, "pipeline") as connection:
        serving = deployments.desired_row(connection, spec.name)
        first_deployed = deployments.first_deployment(connection, spec.name)
        counted_until = window_rows.measured_until(connection, window_profile, model=spec.name)
    if serving is None or first_deployed is None:
        return 0
    end = grid(until, window)
    # Windows of another length, counted before an edit of the model file, stay unchanged.
    if counted_until:
        first = grid(counted_until + window - timedelta(microseconds=1), window)
    else:
        first = grid(first_deployed, window)
    starts = list(_window_starts(max(first, end - BACKLOG * window), end, window))
    if starts:
        time.sleep(max(0.0, (end + SETTLE - now).total_seconds()))
    references = References(settings, spec.name)
    for start in starts:
        counts_by_version = _count(settings, references, start=start, end=start + window)
        counts_by_version.setdefault(int(serving["version"]), WindowCounts())
        _store(settings, spec.name, counts_by_version, start=start, end=start + window, now=now)
    return len(starts)


def drift(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> list[str]:
    """Compare each version's new windows with its profile. Return one line a window with the result."""
    with session(settings, "pipeline") as connection:
        since = until - BACKLOG * spec.monitoring.window
        versions = window_rows.versions(connection, model=spec.name, after=since)
    references, lines = References(settings, spec.name), []
    for version in versions:
        with session(settings, "pipeline") as connection:
            measured_until = window_rows.measured_until(connection, drift_result, model=spec.name, version=version)
            rows = window_rows.windows(
                connection, window_profile, model=spec.name, version=version, after=measured_until or EPOCH, until=until
            )
        for group in merge(rows, min_rows=spec.monitoring.min_rows):
            row = _result(spec, references, group, now=now)
            with session(settings, "pipeline") as connection:
                window_rows.add_window(connection, drift_result, row)
            result = f"drift, most of {row['worst']}" if row["drifted"] else "no drift"
            lines.append(
                f"version {version}, {row['window_start']:%Y-%m-%d %H:%M:%S}, {row['row_count']:,} rows: {result}"
            )
    return lines


def merge(rows: Sequence[RowMapping], *, min_rows: int) -> Iterator[list[RowMapping]]:
    """Group neighbouring windows until a group has `min_rows` distinct rows. The remaining windows wait for more."""
    group: list[RowMapping] = []
    for row in rows:
        group.append(row)
        if sum(member["distinct_count"] for member in group) >= min_rows:
            yield group
            group = []


def _window_starts(start: datetime, end: datetime, window: timedelta) -> Iterator[datetime]:
    while start < end:
        yield start
        start += window


def _count(settings: Settings, references: References, *, start: datetime, end: datetime) -> dict[int, WindowCounts]:
    counts_by_version: dict[int, WindowCounts] = {}
    for chunk in reading.predictions(settings, references.model, start=start, end=end):
        for version in pc.unique(chunk["version"]).to_pylist():
            try:
                profile = references.reference(version).profile
            except NotFound as error:
                log.warning("predictions of version %s are not monitored: %s", version, error)
                continue
            rows = chunk.filter(pc.equal(chunk["version"], version))
            counts_by_version.setdefault(version, WindowCounts()).add(rows, profile=profile)
    return counts_by_version


def _store(
    settings: Settings,
    model: str,
    counts_by_version: dict[int, WindowCounts],
    *,
    start: datetime,
    end: datetime,
    now: datetime,
) -> None:
    """Write one row a version, all in one transaction. So a window is counted completely or not at all."""
    with session(settings, "pipeline") as connection:
        rejects = _new_rejects(connection, model, start)
        for version, window_counts in counts_by_version.items():
            row = {
                "model": model,
                "version": version,
                "window_start": start,
                "window_end": end,
                "row_count": window_counts.rows,
                "distinct_count": window_counts.distinct,
                "counts": {name: bins.tolist() for name, bins in window_counts.counts.items()},
                "quality": {"unseen": window_counts.unseen, **rejects},
                "measured_at": now,
            }
            window_rows.add_window(connection, window_profile, row)


def _new_rejects(connection: Any, model: str, start: datetime) -> dict[str, Any]:
    """The requests refused since the last window was counted, by field.

    The log counts refused requests only by day. The totals are stored too, so that the next call can subtract them.
    """
    windows = window_rows.last_windows(connection, model=model, most=1)
    last_totals: dict[str, dict[str, int]] = windows[-1]["quality"].get("reject_totals", {}) if windows else {}
    totals = window_rows.rejects(connection, model=model, since=start - timedelta(days=1))
    new_rejects: dict[str, int] = {}
    for day, fields in totals.items():
        for name, total in fields.items():
            if increase := total - last_totals.get(day, {}).get(name, 0):
                new_rejects[name] = new_rejects.get(name, 0) + increase
    return {"rejects": new_rejects, "reject_totals": totals}


def _result(spec: ModelSpec, references: References, group: Sequence[RowMapping], *, now: datetime) -> dict[str, Any]:
    version = int(group[0]["version"])
    profile, window = references.reference(version).profile, summed(group)
    differences = measure_drift(profile, window, policy=spec.monitoring.drift)
    worst = worst_first(differences)
    window_defects = find_defects(profile, window, unseen=unseen(group), drifted=frozenset(worst))
    return {
        "model": spec.name,
        "version": version,
        "window_start": group[0]["window_start"],
        "window_end": group[-1]["window_end"],
        "row_count": sum(row["row_count"] for row in group),
        "drifted": bool(worst),
        "worst": worst[0] if worst else None,
        "evidence": {
            "differences": {name: asdict(difference) for name, difference in differences.items()},
            "drifted": worst,
            "defects": [defect.to_json() for defect in window_defects],
            "missing": {name: round(float(bins[-1] / max(1, bins.sum())), 4) for name, bins in window.items()},
            "unseen": unseen(group),
        },
        "measured_at": now,
    }
