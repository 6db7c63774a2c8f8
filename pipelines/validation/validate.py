"""Validate: check a snapshot against its model file and against the last training's snapshot."""

import logging
from collections.abc import Mapping, Sequence
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
from pipelines.validation.last_training import (
    check_differences,
    check_freshness,
    check_row_count,
    label_statistics,
    newest_time_by_day,
)
from pipelines.validation.leaks import Ints, build_target, describe_leak, encode
from pipelines.validation.report import Violation, grade_findings, render_page
from pipelines.validation.rules import Finding, check_structure, check_values, check_variety
from utils.errors import ValidationFailed
from utils.settings import Settings

REPORT_FILE, REPORT_PAGE = "validation/report.json", "validation/report.html"
RHYTHM_PERIOD = timedelta(days=92)  # the usual rhythm of feature rows is that of this period before the window end

log = logging.getLogger(__name__)


def validate(run: Run, snapshot: Snapshot, *, settings: Settings, now: datetime) -> list[Violation]:
    """Check the snapshot of a run. Return the violations, the worst first.

    The report is written to the run's artifacts in MLflow and to a row in MariaDB. A second call writes it again.

    Raises:
        ValidationFailed: a violation is an error. The report has been written.
        Unreachable.
    """
    end, store = run.window_end, run.spec.store
    with session(settings, "pipeline") as connection:
        last_report = validation_reports.last_trained(connection, model=run.model, run_id=run.run_id, window_end=end)
        feature_times = (
            loads.feature_times(connection, store, after=end - RHYTHM_PERIOD, until=end, commit_seq=run.commit_seq)
            if run.spec.timed
            else []
        )
    before = last_report["report"]["statistics"] if last_report else None
    findings, statistics = examine(
        snapshot.frame, spec=run.spec, window_end=end, feature_times=feature_times, before=before
    )
    violations = grade_findings(findings, run.spec.validation)
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
        "violations": [violation.to_json() for violation in violations],
        "statistics": statistics,
    }
    _write_report(report, run=run, settings=settings, now=now)
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
    """Check the rows of a snapshot. Return the findings and the statistics of the snapshot. Pure.

    The statistics are plain JSON. The next training compares its snapshot with them.

    frame: the rows of the snapshot.
    feature_times: the newest event time of each recent day with feature rows, oldest first.
    before: the statistics of the last training's snapshot. None in a first training.
    """
    findings = [*check_structure(frame, spec=spec)]
    broken_columns = {finding.column for finding in findings}
    usable_features = [name for name in spec.features.columns if name not in broken_columns]
    label_is_usable = spec.label.column not in broken_columns
    findings += check_values(frame, spec=spec, features=usable_features, label=label_is_usable)
    labelled = _select_labelled(frame, spec=spec) if label_is_usable else frame.iloc[:0]
    target = build_target(labelled, spec=spec) if len(labelled) else None
    columns: dict[str, Any] = {}
    for name in usable_features:
        numeric = isinstance(spec.features.columns[name], Numeric)
        codes, distinct = encode(frame[name], numeric=numeric)
        columns[name] = _feature_statistics(
            frame[name], codes, distinct, kind=spec.features.columns[name].type, before=before
        )
        findings += check_variety(name, columns[name], rows=len(frame), before=before)
        if target:
            labelled_codes = codes if labelled is frame else encode(labelled[name], numeric=numeric)[0]
            text = describe_leak(labelled[name], labelled_codes, target, label=labelled[spec.label.column])
            findings += [Finding("leak", name, 1.0, text)] if text else []
    statistics = {
        "rows": len(frame),
        "window": spec.training.model_dump(mode="json")["window"],
        "newest_label": frame["event_time"].max().isoformat() if spec.timed else None,
        "columns": columns,
        "label": label_statistics(labelled, spec=spec),
    }
    findings += check_row_count(statistics, spec=spec, before=before)
    findings += check_differences(frame, labelled, statistics, before, spec=spec) if before else ()
    if spec.timed:
        findings += check_freshness(
            "label", newest_time_by_day(frame["event_time"]), due=window_end - spec.label.maturity
        )
        findings += check_freshness("feature row", feature_times, due=window_end)
    return findings, statistics


def _select_labelled(frame: pd.DataFrame, *, spec: ModelSpec) -> pd.DataFrame:
    """Select the rows with a usable label. Return `frame` itself if all rows have a usable label."""
    label = frame[spec.label.column]
    has_label = label.isin(spec.label.classes) if spec.label.classes else label.notna()
    return frame if has_label.all() else frame[has_label]


def _feature_statistics(
    values: pd.Series, codes: Ints, distinct: int, *, kind: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The statistics of a feature for the report. `missing` is a share of the rows.

    codes: the codes of `values`, −1 where a value is missing.
    distinct: the number of distinct values.
    """
    last_column = before["columns"].get(values.name) if before else None
    low, high = (
        (float(values.min()) + 0.0, float(values.max()) + 0.0)  # −0 becomes 0
        if kind == "numeric" and distinct
        else (None, None)
    )
    return {
        "type": kind,
        "missing": float((codes < 0).mean()),
        "missing_before": last_column and last_column["missing"],
        "distinct": distinct,
        "min": low,
        "max": high,
    }


def _write_report(report: Mapping[str, Any], *, run: Run, settings: Settings, now: datetime) -> None:
    """Write the report to MLflow as JSON and as an HTML page, and to a row in MariaDB."""
    client = registry.client(settings)
    client.log_dict(str(run.mlflow_run_id), dict(report), REPORT_FILE)
    client.log_text(str(run.mlflow_run_id), render_page(report), REPORT_PAGE)
    row = {name: report[name] for name in ("run_id", "model", "snapshot_id", "errors", "warnings")}
    with session(settings, "pipeline") as connection:
        validation_reports.save(connection, {**row, "report": report, "checked_at": now})
