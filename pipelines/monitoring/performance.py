"""Performance: measure the quality of the logged predictions once their labels are mature.

`truths` matches labels with predictions, and leaves out labels that the version learned from.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from sqlalchemy import RowMapping

from db.history import window_rows
from db.log import reading
from db.session import session
from db.tables import performance_result, window_profile
from pipelines.measures.metrics import HIGHER_IS_BETTER, entity_weights, metric_value, resampling_units, weighted_metric
from pipelines.monitoring.references import References
from pipelines.monitoring.truths import COLUMNS, Truths, judged_rows, read_truths
from pipelines.monitoring.windows import BACKLOG, EPOCH
from pipelines.spec import ModelSpec, margin_at
from utils.errors import NotFound
from utils.settings import Settings

CONFIDENCE = 0.95  # one-sided, that a loss is not due to chance


def performance(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> list[str]:
    """Judge each version's windows whose labels are mature at `until` (UTC). Return one line a result."""
    mature = until - spec.label.maturity
    oldest = mature - BACKLOG * spec.monitoring.window
    with session(settings, "pipeline") as connection:
        versions = window_rows.versions(connection, model=spec.name, after=oldest)
    references, lines = References(settings, spec.name), []
    for version in versions:
        with session(settings, "pipeline") as connection:
            judged_until = window_rows.measured_until(connection, performance_result, model=spec.name, version=version)
            rows = window_rows.windows(
                connection,
                window_profile,
                model=spec.name,
                version=version,
                after=max(judged_until or EPOCH, oldest),
                until=mature,
            )
        pending = [row for row in rows if row["row_count"]]
        for row in _results(settings, spec, references, pending, until=until, now=now) if pending else ():
            with session(settings, "pipeline") as connection:
                window_rows.add_window(connection, performance_result, row)
            estimate = f"{row['metric']} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            lines.append(f"version {version}, window to {row['window_end']}, {row['label_count']:,} labels: {estimate}")
    return lines


def _results(
    settings: Settings,
    spec: ModelSpec,
    references: References,
    pending: Sequence[RowMapping],
    *,
    until: datetime,
    now: datetime,
) -> list[dict[str, Any]]:
    """A row for each group of neighbouring windows with `min_rows` labels. The remaining windows wait for more."""
    start, end = pending[0]["window_start"], pending[-1]["window_end"]
    truths = read_truths(settings, spec, start=start, end=end, known_by=until)
    if truths.empty:
        return []
    version = int(pending[0]["version"])
    try:
        reference = references.reference(version)
    except NotFound:
        return []
    usable_truths = truths.not_learned_by(reference.run)
    results, parts, first_start = [], [], start
    for window in pending:
        parts.append(_labelled(settings, window, usable_truths))
        if sum(map(len, parts)) >= spec.monitoring.min_rows:
            labelled = pd.concat(parts, ignore_index=True)
            measured = _measure(labelled, spec=reference.bundle.spec, metric=spec.watched_metric)
            if not np.isfinite([measured["value"], measured["low"], measured["high"]]).all():
                continue  # undefined on so few rows, for example with one class only
            comparison = _compared_with_judged(measured, references.judged(version, spec.watched_metric), spec=spec)
            key = {
                "model": spec.name,
                "version": version,
                "window_start": first_start,
                "window_end": window["window_end"],
            }
            results.append({**key, **measured, **comparison, "label_count": len(labelled), "measured_at": now})
            parts, first_start = [], window["window_end"]
    return results


def _labelled(settings: Settings, window: RowMapping, truths: Truths) -> pd.DataFrame:
    """The version's predictions of `window` with a known truth. Columns: `COLUMNS`."""
    parts = [pd.DataFrame(columns=COLUMNS)]
    for chunk in reading.predictions(
        settings, truths.spec.name, start=window["window_start"], end=window["window_end"]
    ):
        rows = chunk.filter(pc.equal(chunk["version"], window["version"])).drop(["features", "warnings"])
        parts.append(truths.add_truths(rows.to_pandas())[COLUMNS])
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _measure(labelled: pd.DataFrame, *, spec: ModelSpec, metric: str) -> dict[str, Any]:
    """Compute the metric with one-sided confidence bounds, from resampled entities (`metrics.entity_weights`)."""
    judged = judged_rows(labelled, spec=spec)
    units = resampling_units(labelled["entity_id"].to_numpy(), labelled["created_at"].to_numpy())
    blocks = entity_weights(units)
    resampled = np.concatenate([weighted_metric(metric, judged, weights) for weights in blocks])
    low, high = np.nanquantile(resampled, [1 - CONFIDENCE, CONFIDENCE])
    entities = int(labelled["entity_id"].nunique())
    return {
        "metric": metric,
        "value": metric_value(metric, judged),
        "low": float(low),
        "high": float(high),
        "evidence": {"entities": entities, "confidence": CONFIDENCE},
    }


def _compared_with_judged(measured: dict[str, Any], judged: float | None, *, spec: ModelSpec) -> dict[str, Any]:
    """Compare the metric with the version's judged value.

    `lost` means that even the better bound is worse than the judged value by more than the margin.
    """
    if judged is None:
        return {"judged": None, "threshold": None, "lost": False}
    margin = margin_at(spec.watched_margin, judged)
    if HIGHER_IS_BETTER[measured["metric"]]:
        return {"judged": judged, "threshold": judged - margin, "lost": measured["high"] < judged - margin}
    return {"judged": judged, "threshold": judged + margin, "lost": measured["low"] > judged + margin}
