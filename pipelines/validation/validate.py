"""Validate: a snapshot against its model file and the last training's, before anything is learned from it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from db.history import validation_reports
from db.session import session
from db.store import loads
from pipelines import registry
from pipelines.runs.snapshot import Snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec, Numeric
from pipelines.validation.last_training import differences, freshness, label_statistics, last_of_days, row_count
from pipelines.validation.leaks import Ints, codes_of, leak, target_of
from pipelines.validation.report import Violation, judged, page
from pipelines.validation.rules import Finding, structure, values, variety
from utils.errors import ValidationFailed
from utils.settings import Settings

REPORT_FILE, REPORT_PAGE = "validation/report.json", "validation/report.html"
RHYTHM = timedelta(days=92)  # how far back is looked for how often feature rows come

log = logging.getLogger(__name__)


def validate(run: Run, snapshot: Snapshot, *, settings: Settings, now: datetime) -> list[Violation]:
    """What the snapshot breaks, the worst first. The whole report is an artifact of the run and a row; done again, the
    same one.

    Raises: ValidationFailed where any of it is an error, once the report is written; Unreachable.
    """
    end, store = run.window_end, run.spec.store
    with session(settings, "pipeline") as connection:
        last = validation_reports.last_trained(connection, model=run.model, run_id=run.run_id, window_end=end)
        times = (
            loads.feature_times(connection, store, after=end - RHYTHM, until=end, commit_seq=run.commit_seq)
            if run.spec.timed
            else []
        )
    before = last["report"]["statistics"] if last else None
    findings, statistics = examine(snapshot.frame, spec=run.spec, window_end=end, feature_times=times, before=before)
    found = judged(findings, run.spec.validation)
    errors = [violation for violation in found if violation.severity == "error"]
    report = {
        "model": run.model,
        "run_id": run.run_id,
        "snapshot_id": snapshot.manifest.snapshot_id,
        "window_end": f"{end:%Y-%m-%d %H:%M}",
        "compared_with": last and {"run_id": last["run_id"], "window_end": f"{last['window_end']:%Y-%m-%d %H:%M}"},
        "errors": len(errors),
        "warnings": len(found) - len(errors),
        "violations": [asdict(violation) for violation in found],
        "statistics": statistics,
    }
    _record(report, run=run, settings=settings, now=now)
    for violation in found:
        tell = log.error if violation.severity == "error" else log.warning
        tell("%s: %s", violation.rule, violation)
    if errors:
        where = f"{settings.mlflow_pages_url}/#/runs/{run.mlflow_run_id}"
        raise ValidationFailed(model=run.model, violations=[str(violation) for violation in errors], report=where)
    return found


def examine(
    frame: pd.DataFrame,
    *,
    spec: ModelSpec,
    window_end: datetime,
    feature_times: Sequence[datetime] = (),
    before: Mapping[str, Any] | None = None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Every rule that `frame` (a snapshot's rows) breaks; and its statistics, plain JSON, for the next training. Pure.

    `feature_times`: the newest event time of each of the last days with feature rows, oldest first. `before`: the
    statistics of the last training's snapshot.
    """
    found = [*structure(frame, spec=spec)]
    broken = {finding.column for finding in found}
    usable = [name for name in spec.features.columns if name not in broken]
    found += values(frame, spec=spec, names=usable, label=spec.label.column not in broken)
    labelled = _labelled(frame, spec=spec) if spec.label.column not in broken else frame.iloc[:0]
    target = target_of(labelled, spec=spec) if len(labelled) else None
    columns: dict[str, Any] = {}
    for name in usable:
        numeric = isinstance(spec.features.columns[name], Numeric)
        codes, distinct = codes_of(frame[name], numeric=numeric)
        columns[name] = _statistics(frame[name], codes, distinct, kind=spec.features.columns[name].type, before=before)
        found += variety(name, columns[name], rows=len(frame), before=before)
        if target:
            right = codes if labelled is frame else codes_of(labelled[name], numeric=numeric)[0]
            told = leak(labelled[name], right, target, label=labelled[spec.label.column])
            found += [Finding("leak", name, 1.0, told)] if told else []
    statistics = {
        "rows": len(frame),
        "window": spec.training.model_dump(mode="json")["window"],
        "newest_label": frame["event_time"].max().isoformat() if spec.timed else None,
        "columns": columns,
        "label": label_statistics(labelled, spec=spec),
    }
    found += row_count(statistics, spec=spec, before=before)
    found += differences(frame, labelled, statistics, before, spec=spec) if before else ()
    if spec.timed:
        found += freshness("label", last_of_days(frame["event_time"]), due=window_end - spec.label.maturity)
        found += freshness("feature row", feature_times, due=window_end)
    return found, statistics


def _labelled(frame: pd.DataFrame, *, spec: ModelSpec) -> pd.DataFrame:
    """The rows whose label can be learned from; `frame` itself where all can."""
    label = frame[spec.label.column]
    right = label.isin(spec.label.classes) if spec.label.classes else label.notna()
    return frame if right.all() else frame[right]


def _statistics(
    values: pd.Series, codes: Ints, distinct: int, *, kind: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What stands of a feature in the report. `missing` is a share of the rows, `codes` are −1 there. No −0."""
    last = before["columns"].get(values.name) if before else None
    low, high = (
        (float(values.min()) + 0.0, float(values.max()) + 0.0) if kind == "numeric" and distinct else (None, None)
    )
    return {
        "type": kind,
        "missing": float((codes < 0).mean()),
        "missing_before": last and last["missing"],
        "distinct": distinct,
        "min": low,
        "max": high,
    }


def _record(report: Mapping[str, Any], *, run: Run, settings: Settings, now: datetime) -> None:
    """The report in MLflow, as JSON and as a page, and as a row."""
    mlflow = registry.client(settings)
    mlflow.log_dict(str(run.mlflow_run_id), dict(report), REPORT_FILE)
    mlflow.log_text(str(run.mlflow_run_id), page(report), REPORT_PAGE)
    row = {name: report[name] for name in ("run_id", "model", "snapshot_id", "errors", "warnings")}
    with session(settings, "pipeline") as connection:
        validation_reports.save(connection, {**row, "report": report, "checked_at": now})
