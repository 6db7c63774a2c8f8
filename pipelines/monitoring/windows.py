"""Monitor: count what the services predicted, window by window, and tell drift and broken sources from it.

Windows are disjoint and lie on a fixed grid: the n-th of length L begins n·L after 1970-01-01 UTC, whoever asks and
whenever. Each row of the log is read once; everything later works on the counts. All results are append-only, so a step
that is done again changes nothing.
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
from pipelines.measures.defects import defects
from pipelines.measures.drift import measure_drift, worst_first
from pipelines.monitoring.counts import WindowCounts, summed, unseen
from pipelines.monitoring.references import References
from pipelines.spec import ModelSpec
from utils.errors import NotFound
from utils.settings import Settings

EPOCH = datetime(1970, 1, 1)
SETTLE = timedelta(seconds=5)  # a prediction's row is committed within its service's timeouts
BACKLOG = 100  # windows; what is older was never looked at and is not worth it any more

log = logging.getLogger(__name__)


def grid(moment: datetime, window: timedelta) -> datetime:
    """The last border between two windows at or before `moment`."""
    return moment - (moment - EPOCH) % window


def count_windows(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> int:
    """Count the rows of every complete window that ended by `until` and has not been counted; returns how many windows.

    It waits for the rows of the last moments. Before the first deployment there is nothing to count.
    Raises: Unreachable.
    """
    window = spec.monitoring.window
    with session(settings, "pipeline") as connection:
        serving = deployments.desired_row(connection, spec.name)
        begun = deployments.first_deployment(connection, spec.name)
        counted = window_rows.measured_until(connection, window_profile, model=spec.name)
    if serving is None or begun is None:
        return 0
    end = grid(until, window)
    # Windows of another length, as before an edit of the model file, are left as they are.
    first = grid((counted or begun) + (window - timedelta(microseconds=1) if counted else timedelta(0)), window)
    starts = list(_between(max(first, end - BACKLOG * window), end, window))
    if starts:
        time.sleep(max(0.0, (end + SETTLE - now).total_seconds()))
    references = References(settings, spec.name)
    for start in starts:
        counts_by_version = _count(settings, references, start=start, end=start + window)
        counts_by_version.setdefault(int(serving["version"]), WindowCounts())
        _store(settings, spec.name, counts_by_version, start=start, end=start + window, now=now)
    return len(starts)


def drift(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> list[str]:
    """Compare each version's new windows with its profile; says in a line each what was found."""
    with session(settings, "pipeline") as connection:
        since = until - BACKLOG * spec.monitoring.window
        watched = window_rows.versions(connection, model=spec.name, after=since)
    references, told = References(settings, spec.name), []
    for version in watched:
        with session(settings, "pipeline") as connection:
            done = window_rows.measured_until(connection, drift_result, model=spec.name, version=version)
            rows = window_rows.windows(
                connection, window_profile, model=spec.name, version=version, after=done or EPOCH, until=until
            )
        for merged in merge(rows, min_rows=spec.monitoring.min_rows):
            row = _result(spec, references, merged, now=now)
            with session(settings, "pipeline") as connection:
                window_rows.add_window(connection, drift_result, row)
            shown = f"drift, most of {row['worst']}" if row["drifted"] else "no drift"
            told.append(
                f"version {version}, {row['window_start']:%Y-%m-%d %H:%M:%S}, {row['row_count']:,} rows: {shown}"
            )
    return told


def merge(rows: Sequence[RowMapping], *, min_rows: int) -> Iterator[list[RowMapping]]:
    """Neighbouring windows put together until they have `min_rows` distinct rows; what is left over waits for more."""
    gathered: list[RowMapping] = []
    for row in rows:
        gathered.append(row)
        if sum(each["distinct_count"] for each in gathered) >= min_rows:
            yield gathered
            gathered = []


def _between(start: datetime, end: datetime, window: timedelta) -> Iterator[datetime]:
    while start < end:
        yield start
        start += window


def _count(settings: Settings, references: References, *, start: datetime, end: datetime) -> dict[int, WindowCounts]:
    counts_by_version: dict[int, WindowCounts] = {}
    for chunk in reading.predictions(settings, references.model, start=start, end=end):
        for version in pc.unique(chunk["version"]).to_pylist():
            try:
                profile = references.reference(version).profile
            except NotFound as gone:
                log.warning("its predictions are not watched: %s", gone)
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
    """One row a version, all in one transaction: a window is counted whole or not at all."""
    with session(settings, "pipeline") as connection:
        refused = _new_rejects(connection, model, start)
        for version, window_counts in counts_by_version.items():
            row = {
                "model": model,
                "version": version,
                "window_start": start,
                "window_end": end,
                "row_count": window_counts.rows,
                "distinct_count": window_counts.distinct,
                "counts": {name: counted.tolist() for name, counted in window_counts.counts.items()},
                "quality": {"unseen": window_counts.unseen, **refused},
                "measured_at": now,
            }
            window_rows.add_window(connection, window_profile, row)


def _new_rejects(connection: Any, model: str, start: datetime) -> dict[str, Any]:
    """Requests refused since the window before was counted, by field. They are counted by the day only, so the totals
    are kept to tell the new ones from."""
    before = window_rows.last_windows(connection, model=model, most=1)
    known: dict[str, dict[str, int]] = before[-1]["quality"].get("reject_totals", {}) if before else {}
    totals = window_rows.rejects(connection, model=model, since=start - timedelta(days=1))
    fresh: dict[str, int] = {}
    for day, fields in totals.items():
        for name, total in fields.items():
            if new := total - known.get(day, {}).get(name, 0):
                fresh[name] = fresh.get(name, 0) + new
    return {"rejects": fresh, "reject_totals": totals}


def _result(spec: ModelSpec, references: References, merged: Sequence[RowMapping], *, now: datetime) -> dict[str, Any]:
    version = int(merged[0]["version"])
    profile, found = references.reference(version).profile, summed(merged)
    differences = measure_drift(profile, found, policy=spec.monitoring.drift)
    worst = worst_first(differences)
    broken = defects(profile, found, unseen=unseen(merged), drifted=frozenset(worst))
    return {
        "model": spec.name,
        "version": version,
        "window_start": merged[0]["window_start"],
        "window_end": merged[-1]["window_end"],
        "row_count": sum(row["row_count"] for row in merged),
        "drifted": bool(worst),
        "worst": worst[0] if worst else None,
        "evidence": {
            "differences": {name: asdict(difference) for name, difference in differences.items()},
            "drifted": worst,
            "defects": [asdict(defect) for defect in broken],
            "missing": {name: round(float(counts[-1] / max(1, counts.sum())), 4) for name, counts in found.items()},
            "unseen": unseen(merged),
        },
        "measured_at": now,
    }
