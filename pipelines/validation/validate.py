"""Validate: check a snapshot against its model file and the last training's snapshot, before a model is fitted."""

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
RHYTHM = timedelta(days=92)  # how far back feature rows are read to learn how often they come

log = logging.getLogger(__name__)


def validate(run: Run, snapshot: Snapshot, *, settings: Settings, now: datetime) -> list[Violation]:
    """Return the broken rules of the snapshot, the worst first.

    The whole report is written to the run's artifacts and to a row. A second call writes the same report.

    Raises:
        ValidationFailed: a broken rule is an error. The report is already written.
        Unreachable.
    """
    end, store = run.window_end, run.spec.store
    with session(settings, "pipeline") as connection:
        last_report = validation_reports.last_trained(connection, model=run.model, run_id=run.run_id, window_end=end)
        times = (
            loads.feature_times(connection, store, after=end - RHYTHM, until=end, commit_seq=run.commit_seq)
            if run.spec.timed
            else []
        )
    before = last_report["report"]["statistics"] if last_report else None
    findings, statistics = examine(snapshot.frame, spec=run.spec, window_end=end, feature_times=times, before=before)
    violations = judged(findings, run.spec.validation)
    errors = [violation for violation in violations if violation.severity == "error"]
    report = {
        "model": run.model,
        "run_id": run.run_id,
        "snapshot_id": snapshot.manifest.snapshot_id,
        "window_end": f"{end:%Y-%m-%d %H:%M}",
        "compared_with": last_report
        and {"run_id": last_report["run_id"], "window_end": f"{last_report['window_end']:%Y-%m-%d %H:%M}"},
        "errors": len(errors),
        "warnings": len(violations) - len(errors),
        "violations": [asdict(violation) for violation in violations],
        "statistics": statistics,
    }
    _record(report, run=run, settings=settings, now=now)
    for violation in violations:
        log_violation = log.error if violation.severity == "error" else log.warning
        log_violation("%s: %s", violation.rule, violation)
    if errors:
        address = f"{settings.mlflow_pages_url}/#/runs/{run.mlflow_run_id}"
        raise ValidationFailed(model=run.model, violations=[str(violation) for violation in errors], report=address)
    return violations


def examine(
    frame: pd.DataFrame,
    *,
    spec: ModelSpec,
    window_end: datetime,
    feature_times: Sequence[datetime] = (),
    before: Mapping[str, Any] | None = None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Return the broken rules of `frame`, a snapshot's rows, and its statistics for the next training. Pure.

    The statistics are plain JSON.

    feature_times: the newest event time of each of the last days with feature rows, oldest first.
    before: the statistics of the last training's snapshot.
    """
    findings = [*structure(frame, spec=spec)]
    broken = {finding.column for finding in findings}
    usable = [name for name in spec.features.columns if name not in broken]
    findings += values(frame, spec=spec, names=usable, label=spec.label.column not in broken)
    labelled = _labelled(frame, spec=spec) if spec.label.column not in broken else frame.iloc[:0]
    target = target_of(labelled, spec=spec) if len(labelled) else None
    columns: dict[str, Any] = {}
    for name in usable:
        numeric = isinstance(spec.features.columns[name], Numeric)
        codes, distinct = codes_of(frame[name], numeric=numeric)
        columns[name] = _statistics(frame[name], codes, distinct, kind=spec.features.columns[name].type, before=before)
        findings += variety(name, columns[name], rows=len(frame), before=before)
        if target:
            labelled_codes = codes if labelled is frame else codes_of(labelled[name], numeric=numeric)[0]
            text = leak(labelled[name], labelled_codes, target, label=labelled[spec.label.column])
            findings += [Finding("leak", name, 1.0, text)] if text else []
    statistics = {
        "rows": len(frame),
        "window": spec.training.model_dump(mode="json")["window"],
        "newest_label": frame["event_time"].max().isoformat() if spec.timed else None,
        "columns": columns,
        "label": label_statistics(labelled, spec=spec),
    }
    findings += row_count(statistics, spec=spec, before=before)
    findings += differences(frame, labelled, statistics, before, spec=spec) if before else ()
    if spec.timed:
        findings += freshness("label", last_of_days(frame["event_time"]), due=window_end - spec.label.maturity)
        findings += freshness("feature row", feature_times, due=window_end)
    return findings, statistics


def _labelled(frame: pd.DataFrame, *, spec: ModelSpec) -> pd.DataFrame:
    """The rows with a usable label. `frame` itself where all rows have one."""
    label = frame[spec.label.column]
    has_label = label.isin(spec.label.classes) if spec.label.classes else label.notna()
    return frame if has_label.all() else frame[has_label]


def _statistics(
    values: pd.Series, codes: Ints, distinct: int, *, kind: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The report's statistics of a feature. `missing` is a share of the rows; `codes` are −1 there. −0 becomes 0."""
    last_column = before["columns"].get(values.name) if before else None
    low, high = (
        (float(values.min()) + 0.0, float(values.max()) + 0.0) if kind == "numeric" and distinct else (None, None)
    )
    return {
        "type": kind,
        "missing": float((codes < 0).mean()),
        "missing_before": last_column and last_column["missing"],
        "distinct": distinct,
        "min": low,
        "max": high,
    }


def _record(report: Mapping[str, Any], *, run: Run, settings: Settings, now: datetime) -> None:
    """Write the report to MLflow, as JSON and as a page, and to a row."""
    client = registry.client(settings)
    client.log_dict(str(run.mlflow_run_id), dict(report), REPORT_FILE)
    client.log_text(str(run.mlflow_run_id), page(report), REPORT_PAGE)
    row = {name: report[name] for name in ("run_id", "model", "snapshot_id", "errors", "warnings")}
    with session(settings, "pipeline") as connection:
        validation_reports.save(connection, {**row, "report": report, "checked_at": now})
