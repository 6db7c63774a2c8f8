"""The checks of a snapshot against its model file and the last training's snapshot, and the report."""

import json
import re
from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.spec import ModelSpec, Validation
from pipelines.validation.report import grade_findings, render_page
from pipelines.validation.rules import Finding
from pipelines.validation.validate import examine
from utils.errors import SpecInvalid
from utils.version import ROOT

ROWS, END = 800, datetime(2026, 9, 30)
FILE: dict[str, Any] = {
    "name": "late_orders",
    "task": "binary",
    "entity": "order",
    "source": {"event_time": "at"},
    "label": {"column": "outcome", "classes": ["on time", "late"]},
    "features": {
        "columns": {
            "km": {"type": "numeric", "min": 0, "max": 500},
            "weather": {"type": "categorical", "values": ["dry", "rain", "snow"]},
            "note": {"type": "text"},
        }
    },
    "training": {"window": "90d"},
}
SPEC = ModelSpec.parse(FILE, file="late_orders.yaml")
REGRESSION = ModelSpec.parse(FILE | {"task": "regression", "label": {"column": "minutes"}}, file="late_orders.yaml")


def orders(rows: int = ROWS, *, end: datetime = END, seed: int = 7, **replacements: Any) -> pd.DataFrame:
    """The rows of a snapshot without violations: orders in the 80 days before `end`. `replacements` are columns."""
    random = np.random.default_rng(seed)
    hours = np.sort(random.uniform(0, 80 * 24, rows))[::-1]
    columns = {
        "entity_id": [f"A{i}" for i in range(rows)],
        "event_time": [end - timedelta(hours=hour) for hour in hours],
        "outcome": random.choice(["on time", "late"], rows, p=[0.7, 0.3]),
        "minutes": random.normal(30, 10, rows),
        "km": random.exponential(6, rows).round(1),
        "weather": random.choice(["dry", "rain", "snow"], rows),
        "note": random.choice(["ring twice", "leave at the door"], rows),
    }
    frame = pd.DataFrame(columns | replacements)
    text_columns = ["entity_id", "weather", "note", "outcome"]
    return frame.astype({name: object for name in text_columns if name not in replacements})


def findings_of(frame: pd.DataFrame, *, spec: ModelSpec = SPEC, **context: Any) -> dict[tuple[str, str | None], str]:
    """The texts of the findings by rule and column. `context` has further arguments of `examine`."""
    findings, _ = examine(frame, spec=spec, window_end=context.pop("window_end", END), **context)
    return {(finding.rule, finding.column): finding.text for finding in findings}


def with_first(values: pd.Series, *, count: int, value: object) -> pd.Series:
    """Replace the first `count` of `values` by `value`."""
    return pd.Series([value if position < count else old for position, old in enumerate(values)], dtype=values.dtype)


BEFORE = examine(orders(), spec=SPEC, window_end=END)[1]


def test_a_valid_snapshot_has_no_findings_in_a_first_and_in_a_later_training() -> None:
    assert findings_of(orders()) == {}
    assert findings_of(orders(), before=BEFORE) == {}
    later_orders = orders(seed=8, end=END + timedelta(days=30))
    assert findings_of(later_orders, before=BEFORE, window_end=END + timedelta(days=30)) == {}


def test_all_violations_of_the_model_file_are_found_together() -> None:
    valid = orders()
    frame = orders(
        km=with_first(with_first(valid["km"], count=12, value=900.5), count=3, value=-1.0),
        weather=with_first(valid["weather"], count=4, value="fog"),
        outcome=with_first(with_first(valid["outcome"], count=5, value="lost"), count=2, value=None),
    )
    frame = pd.concat([frame, frame.tail(7)], ignore_index=True)
    findings = findings_of(frame)
    assert findings[("ranges", "km")] == "is above the maximum 500 in 9 of 807 rows, first '900.5'"
    assert findings[("values", "weather")] == "is none of its values in 4 of 807 rows, first 'fog'"
    assert findings[("label", "outcome")] == "is no class in 3 of 807 rows, first 'lost'"
    assert findings[("duplicates", None)] == "a row of the same entity and time again in 7 of 807 rows"
    all_findings, _ = examine(frame, spec=SPEC, window_end=END)
    assert {"is below the minimum 0 in 3 of 807 rows, first '-1.0'", "is missing in 2 of 807 rows"} <= {
        finding.text for finding in all_findings
    }


def test_columns_that_are_missing_or_of_another_type_are_reported_and_other_columns_still_checked() -> None:
    frame = orders(km=["far"] * ROWS, weather=["fog"] * ROWS).drop(columns="note")
    findings = findings_of(frame)
    assert findings[("columns", "km")] == "holds text where the model file has numbers"
    assert findings[("columns", "note")] == "is not in the snapshot"
    assert ("values", "weather") in findings


def test_a_snapshot_without_its_label_has_a_finding_and_still_has_statistics() -> None:
    findings, statistics = examine(orders().drop(columns="outcome"), spec=SPEC, window_end=END, before=BEFORE)
    assert [(finding.rule, finding.column) for finding in findings] == [("columns", "outcome")]
    assert statistics["columns"]["km"]["distinct"] > 1


def test_empty_and_constant_features_have_different_findings() -> None:
    findings = findings_of(orders(km=[np.nan] * ROWS, weather=np.array(["dry"] * ROWS, dtype=object)), before=BEFORE)
    assert findings[("empty", "km")] == "has no value in any row"
    assert findings[("constant", "weather")] == "has the same value in every row; it had 3 values in the last training"
    one_value_or_none = np.array(["dry" if number % 2 else None for number in range(ROWS)], dtype=object)
    assert ("constant", "weather") not in findings_of(orders(weather=one_value_or_none))


def test_a_leak_is_found_in_a_snapshot() -> None:
    is_late = (orders()["outcome"] == "late").astype(float)
    assert "may have been written after the label" in findings_of(orders(km=is_late))[("leak", "km")]


def test_a_feature_that_is_missing_only_since_the_last_training_is_reported() -> None:
    """An eighth of all rows is new. The missing values of these rows are too few to notice among all rows."""
    frame = orders(end=END + timedelta(days=10))
    is_newer = frame["event_time"] > pd.Timestamp(BEFORE["newest_label"])
    frame.loc[is_newer, "km"] = np.nan
    text = findings_of(frame, before=BEFORE, window_end=END + timedelta(days=10))[("null_share", "km")]
    assert text == f"is missing in 100% of the {is_newer.sum()} newest rows; in the last training it was in 0%"


def test_missing_values_are_reported_only_if_the_last_training_had_fewer() -> None:
    km_with_gaps = orders()["km"].where(np.arange(ROWS) % 2 == 0)
    before = examine(orders(km=km_with_gaps), spec=SPEC, window_end=END)[1]
    assert findings_of(orders(km=km_with_gaps), before=before) == {}
    assert ("null_share", "km") in findings_of(orders(km=km_with_gaps), before=BEFORE)


def test_a_class_that_was_removed_from_the_model_file_is_not_reported_as_lost() -> None:
    before = BEFORE | {"label": {"classes": BEFORE["label"]["classes"] | {"cancelled": 90}}}
    assert findings_of(orders(), before=before) == {}


def test_a_lost_class_and_a_changed_distribution_of_classes_break_different_rules() -> None:
    without_late = findings_of(orders(outcome=np.array(["on time"] * ROWS, dtype=object)), before=BEFORE)
    assert without_late[("lost_class", "outcome")].startswith("is 'late' in no row; in the last training it was in 2")
    swapped_outcomes = orders()["outcome"].map({"on time": "late", "late": "on time"}).astype(object)
    after_swap = findings_of(orders(outcome=swapped_outcomes), before=BEFORE)
    assert "in the last training in" in after_swap[("target", "outcome")]
    assert ("lost_class", "outcome") not in after_swap


@pytest.mark.parametrize(
    ("change", "reported"),
    [(lambda old: old + 5, True), (lambda old: 30 + (old - 30) * 2, True), (lambda old: old + 1, False)],
    ids=["changed mean", "changed deviation", "small change"],
)
def test_the_label_of_a_regression_is_compared_by_mean_and_standard_deviation(change: Any, reported: bool) -> None:
    before = examine(orders(), spec=REGRESSION, window_end=END)[1]
    findings = findings_of(orders(minutes=change(orders()["minutes"])), spec=REGRESSION, before=before)
    assert (("target", "minutes") in findings) == reported


def test_rows_are_too_few_below_the_minimum_or_below_half_of_the_last_training() -> None:
    assert "gates.min_rows wants 500" in findings_of(orders(400))[("row_count", None)]
    assert (
        findings_of(orders(), before=BEFORE | {"rows": 2000})[("row_count", None)]
        == "800 rows; the last training had 2,000"
    )
    assert findings_of(orders(), before=BEFORE | {"rows": 2000, "window": "180d"}) == {}  # the look-back was changed


@pytest.mark.parametrize(("days", "stale"), [(1, False), (20, True)])
def test_labels_are_stale_if_they_are_older_than_their_rhythm_explains(days: int, stale: bool) -> None:
    findings = findings_of(orders(), window_end=END + timedelta(days=days))
    assert (("freshness", None) in findings) == stale


def test_feature_rows_of_three_weeks_ago_are_stale_if_daily_but_not_if_monthly() -> None:
    monthly = [END - timedelta(days=21 + 30 * month) for month in (2, 1, 0)]
    assert findings_of(orders(), feature_times=monthly) == {}
    daily = [END - timedelta(days=21 + day) for day in (2, 1, 0)]
    text = findings_of(orders(), feature_times=daily)[("freshness", None)]
    assert text.startswith("the newest feature row is of 2026-09-09 00:00, 21 days before it was due")
    assert text.endswith("otherwise they are at most 1d apart")


def test_data_without_time_is_never_stale_and_is_compared_as_a_whole() -> None:
    file = {name: section for name, section in FILE.items() if name not in {"source", "training"}}
    spec = ModelSpec.parse(file, file="late_orders.yaml")
    frame = orders(event_time=[datetime(1970, 1, 1)] * ROWS)
    before = examine(frame, spec=spec, window_end=END)[1]
    assert findings_of(frame, spec=spec, before=before) == {}
    assert ("null_share", "km") in findings_of(
        frame.assign(km=frame["km"].where(frame.index % 2 == 0)), spec=spec, before=before
    )


def test_the_model_file_sets_the_severity_and_errors_come_first() -> None:
    findings = [
        Finding("constant", "a", 1.0, "x"),
        Finding("leak", "b", 1.0, "x"),
        Finding("ranges", "c", 0.1, "x"),
        Finding("values", "d", 0.5, "x"),
        Finding("columns", "e", 1.0, "x"),
    ]
    violations = grade_findings(findings, Validation())
    assert [(violation.severity, violation.column) for violation in violations] == [
        ("error", "b"),
        ("error", "e"),
        ("error", "d"),
        ("error", "c"),
        ("warning", "a"),
    ]
    violations = grade_findings(findings, Validation(leak="warning", constant="error"))
    assert [violation.column for violation in violations if violation.severity == "warning"] == ["b"]


def test_a_severity_in_the_model_file_changes_the_hash_and_an_empty_section_does_not() -> None:
    changed_spec = ModelSpec.parse(FILE | {"validation": {"leak": "warning"}}, file="x.yaml")
    assert (changed_spec.validation.leak, changed_spec.validation.null_share) == ("warning", "error")
    assert ModelSpec.parse(changed_spec.to_json(), file="x.yaml") == changed_spec
    assert ModelSpec.parse(FILE | {"validation": {}}, file="x.yaml").hash == SPEC.hash != changed_spec.hash


@pytest.mark.parametrize(
    ("section", "message"),
    [({"leaks": "error"}, "validation.leaks: is not a key"), ({"leak": "off"}, "validation.leak: ")],
)
def test_an_unknown_rule_or_severity_is_rejected(section: dict[str, str], message: str) -> None:
    with pytest.raises(SpecInvalid, match=message):
        ModelSpec.parse(FILE | {"validation": section}, file="x.yaml")


def test_the_documents_list_every_rule_with_its_default() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "validation.md").read_text())
    assert rows == [(name, field.default) for name, field in Validation.model_fields.items()]


def report(frame: pd.DataFrame) -> dict[str, Any]:
    """The report of a snapshot with the rows `frame`, as `validate` stores it."""
    findings, statistics = examine(frame, spec=SPEC, window_end=END, before=BEFORE)
    violations = [violation.to_json() for violation in grade_findings(findings, SPEC.validation)]
    last_training = {"run_id": "r1", "window_end": "2026-08-30 00:00"}
    return {
        "model": "late_orders",
        "run_id": "r2",
        "snapshot_id": "s",
        "window_end": "2026-09-30 00:00",
        "compared_with": last_training,
        "errors": len(violations),
        "warnings": 0,
        "violations": violations,
        "statistics": statistics,
    }


class TagParser(HTMLParser):
    """Collects the tags of an HTML text, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_no_other_files_and_escapes_all_values() -> None:
    html = render_page(report(orders(weather=np.array(["<script>alert(1)</script>"] * ROWS, dtype=object))))
    tags = TagParser(html).tags
    assert "script" not in {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags if {"src", "href"} & set(attrs)]
    assert "url(" not in html
    assert "&lt;script&gt;" in html
    assert html.index("&lt;script&gt;") < html.index("<table>")


def test_the_report_is_strict_json_without_entities_and_with_at_most_one_value_per_violation() -> None:
    frame = orders(km=[np.nan] * ROWS, weather=np.array([f"w{i}" for i in range(ROWS)], dtype=object))
    frame = pd.concat([frame, frame], ignore_index=True)
    text = json.dumps(report(frame), allow_nan=False)
    assert not [name for name in frame["entity_id"] if f"'{name}'" in text or f'"{name}"' in text]
    assert [value for value in frame["weather"].unique() if f"'{value}'" in text] == ["w0"]
