"""Performance: how good the logged predictions were, once their labels had time to arrive.

`truths` says what a prediction's label is, and that labels that the version learned from judge nothing.
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
from pipelines.measures.metrics import HIGHER_IS_BETTER, drawn_together, entity_weights, value, weighted
from pipelines.monitoring.references import References
from pipelines.monitoring.truths import COLUMNS, Truths, judged_rows, read_truths
from pipelines.monitoring.windows import BACKLOG, EPOCH
from pipelines.spec import ModelSpec, margin_at
from utils.errors import NotFound
from utils.settings import Settings

CONFIDENCE = 0.95  # that the loss is no chance, one-sided


def performance(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> list[str]:
    """Judge each version's windows whose labels are mature at `until`; says in a line each what was found."""
    mature = until - spec.label.maturity
    oldest = mature - BACKLOG * spec.monitoring.window
    with session(settings, "pipeline") as connection:
        watched = window_rows.versions(connection, model=spec.name, after=oldest)
    versions, told = References(settings, spec.name), []
    for version in watched:
        with session(settings, "pipeline") as connection:
            done = window_rows.measured_until(connection, performance_result, model=spec.name, version=version)
            rows = window_rows.windows(
                connection,
                window_profile,
                model=spec.name,
                version=version,
                after=max(done or EPOCH, oldest),
                until=mature,
            )
        pending = [row for row in rows if row["row_count"]]
        for row in _results(settings, spec, versions, pending, until=until, now=now) if pending else ():
            with session(settings, "pipeline") as connection:
                window_rows.add_window(connection, performance_result, row)
            shown = f"{row['metric']} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            told.append(f"version {version}, window to {row['window_end']}, {row['label_count']:,} labels: {shown}")
    return told


def _results(
    settings: Settings,
    spec: ModelSpec,
    versions: References,
    pending: Sequence[RowMapping],
    *,
    until: datetime,
    now: datetime,
) -> list[dict[str, Any]]:
    """A row for each run of neighbouring windows that has `min_rows` labels; the rest waits for more."""
    start, end = pending[0]["window_start"], pending[-1]["window_end"]
    truths = read_truths(settings, spec, start=start, end=end, known_by=until)
    if truths.empty:
        return []
    version = int(pending[0]["version"])
    try:
        reference = versions.reference(version)
    except NotFound:
        return []
    unlearned = truths.not_learned_by(reference.run)
    results, gathered, first = [], [], start
    for window in pending:
        gathered.append(_labelled(settings, window, unlearned))
        if sum(map(len, gathered)) >= spec.monitoring.min_rows:
            labelled = pd.concat(gathered, ignore_index=True)
            measured = _measure(labelled, spec=reference.bundle.spec, metric=spec.watched_metric)
            if not np.isfinite([measured["value"], measured["low"], measured["high"]]).all():
                continue  # not defined on these few, as with one class only
            against = _against(measured, versions.judged(version, spec.watched_metric), spec=spec)
            place = {"model": spec.name, "version": version, "window_start": first, "window_end": window["window_end"]}
            results.append({**place, **measured, **against, "label_count": len(labelled), "measured_at": now})
            gathered, first = [], window["window_end"]
    return results


def _labelled(settings: Settings, window: RowMapping, truths: Truths) -> pd.DataFrame:
    """The version's predictions of `window` whose truth is known, with it: `COLUMNS`."""
    parts = [pd.DataFrame(columns=COLUMNS)]
    for chunk in reading.predictions(
        settings, truths.spec.name, start=window["window_start"], end=window["window_end"]
    ):
        rows = chunk.filter(pc.equal(chunk["version"], window["version"])).drop(["features", "warnings"])
        parts.append(truths.known(rows.to_pandas())[COLUMNS])
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _measure(labelled: pd.DataFrame, *, spec: ModelSpec, metric: str) -> dict[str, Any]:
    """The metric with its one-sided confidence bounds, from resampled entities (`metrics.entity_weights`)."""
    judged = judged_rows(labelled, spec=spec)
    together = drawn_together(labelled["entity_id"].to_numpy(), labelled["created_at"].to_numpy())
    blocks = entity_weights(together)
    drawn = np.concatenate([weighted(metric, judged, weights) for weights in blocks])
    low, high = np.nanquantile(drawn, [1 - CONFIDENCE, CONFIDENCE])
    entities = int(labelled["entity_id"].nunique())
    return {
        "metric": metric,
        "value": value(metric, judged),
        "low": float(low),
        "high": float(high),
        "evidence": {"entities": entities, "confidence": CONFIDENCE},
    }


def _against(measured: dict[str, Any], judged: float | None, *, spec: ModelSpec) -> dict[str, Any]:
    """Lost: even the better end of the interval is worse than the version was when judged, by more than the margin."""
    if judged is None:
        return {"judged": None, "threshold": None, "lost": False}
    margin = margin_at(spec.watched_margin, judged)
    if HIGHER_IS_BETTER[measured["metric"]]:
        return {"judged": judged, "threshold": judged - margin, "lost": measured["high"] < judged - margin}
    return {"judged": judged, "threshold": judged + margin, "lost": measured["low"] > judged + margin}
