"""Performance: how good the logged predictions were, once their labels had time to arrive.

A prediction's label is, in this order: what a client reported for its id; else the newest label of its entity that is
dated no later than the prediction and no more than `monitoring.performance.match` before it. A label's event time is
when a prediction would have been made, so a later one answers a later question, and an older one a question long
settled. Of data without time an entity has one label. Labels that the version learned from judge nothing.
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
from db.store.point_in_time import labels_between
from db.tables import performance_result, window_profile
from pipelines.measures.metrics import HIGHER_IS_BETTER, drawn_together, entity_weights, value, weighted
from pipelines.monitoring.references import Versions
from pipelines.monitoring.truths import COLUMNS, judged_rows, match_labels, not_learned, usable
from pipelines.monitoring.windows import BACKLOG, EPOCH
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec, margin_at
from utils.errors import NotFound
from utils.settings import Settings

CONFIDENCE = 0.95  # that the loss is no chance, one-sided
SEED = 7


def performance(settings: Settings, spec: ModelSpec, *, until: datetime, now: datetime) -> list[str]:
    """Judge each version's windows whose labels are mature at `until`; says in a line each what was found."""
    mature = until - spec.label.maturity
    oldest = mature - BACKLOG * spec.monitoring.window
    with session(settings, "pipeline") as connection:
        watched = window_rows.versions(connection, model=spec.name, after=oldest)
    versions, told = Versions(settings, spec.name), []
    for version in watched:
        with session(settings, "pipeline") as connection:
            done = window_rows.measured_until(connection, performance_result, model=spec.name, version=version)
            rows = window_rows.windows(
                connection, window_profile, model=spec.name, version=version, after=max(done or EPOCH, oldest),
                until=mature,
            )  # fmt: skip
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
    versions: Versions,
    pending: Sequence[RowMapping],
    *,
    until: datetime,
    now: datetime,
) -> list[dict[str, Any]]:
    """A row for each run of neighbouring windows that has `min_rows` labels; the rest waits for more."""
    truths = _Truths(settings, spec, pending[0]["window_start"], pending[-1]["window_end"], until=until)
    if truths.empty:
        return []
    version = int(pending[0]["version"])
    try:
        reference = versions.reference(version)
    except NotFound:
        return []
    results, gathered, first = [], [], pending[0]["window_start"]
    for window in pending:
        gathered.append(truths.judged(window, learned_by=reference.run))
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


class _Truths:
    """What became known of the predictions of [start, end), by `until`."""

    def __init__(self, settings: Settings, spec: ModelSpec, start: datetime, end: datetime, *, until: datetime) -> None:
        self._settings, self._spec = settings, spec
        match = spec.monitoring.performance.match
        self._labels = labels_between(settings, spec.store, after=start - match, until=end, known_by=until)
        told = reading.feedback(settings, spec.name, start=start, end=end).to_pandas()
        self._feedback: pd.Series = told.set_index("prediction_id")["truth"]

    @property
    def empty(self) -> bool:
        return self._labels.empty and self._feedback.empty

    def judged(self, window: RowMapping, *, learned_by: Run | None) -> pd.DataFrame:
        """The version's predictions of `window` that have a label, with it: `COLUMNS`."""
        spec, labels = self._spec, not_learned(self._labels, learned_by)
        parts = [pd.DataFrame(columns=COLUMNS)]
        for chunk in reading.predictions(
            self._settings, spec.name, start=window["window_start"], end=window["window_end"]
        ):
            rows = (
                chunk.filter(pc.equal(chunk["version"], window["version"])).drop(["features", "warnings"]).to_pandas()
            )
            found = match_labels(rows, labels, timed=spec.timed, match=spec.monitoring.performance.match)
            reported = rows["prediction_id"].map(self._feedback)
            rows["truth"] = usable(reported, spec).combine_first(usable(found, spec))
            parts.append(rows.loc[rows["truth"].notna(), COLUMNS])
        return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _measure(labelled: pd.DataFrame, *, spec: ModelSpec, metric: str) -> dict[str, Any]:
    """The metric with its one-sided confidence bounds, from resampled entities (`metrics.entity_weights`)."""
    judged = judged_rows(labelled, spec=spec)
    together = drawn_together(labelled["entity_id"].to_numpy(), labelled["created_at"].to_numpy())
    blocks = entity_weights(together, seed=SEED)
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
