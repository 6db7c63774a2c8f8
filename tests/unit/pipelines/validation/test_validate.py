"""Checks of a snapshot against its model file, the last training's snapshot and its own rhythm, and the report."""

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
    """A snapshot without violations: `rows` orders in the 80 days before `end`, with `replacements` of its columns."""
    draw = np.random.default_rng(seed)
    hours = np.sort(draw.uniform(0, 80 * 24, rows))[::-1]
    columns = {
        "entity_id": [f"A{i}" for i in range(rows)],
        "event_time": [end - timedelta(hours=hour) for hour in hours],
        "outcome": draw.choice(["on time", "late"], rows, p=[0.7, 0.3]),
        "minutes": draw.normal(30, 10, rows),
        "km": draw.exponential(6, rows).round(1),
        "weather": draw.choice(["dry", "rain", "snow"], rows),
        "note": draw.choice(["ring twice", "leave at the door"], rows),
    }
    frame = pd.DataFrame(columns | replacements)
    texts = ["entity_id", "weather", "note", "outcome"]
    return frame.astype({name: object for name in texts if name not in replacements})


def findings_of(frame: pd.DataFrame, *, spec: ModelSpec = SPEC, **context: Any) -> dict[tuple[str, str | None], str]:
    """The texts of `examine` by rule and column. `context` are further arguments of `examine`."""
    findings, _ = examine(frame, spec=spec, window_end=context.pop("window_end", END), **context)
    return {(finding.rule, finding.column): finding.text for finding in findings}


def with_first(values: pd.Series, *, count: int, value: object) -> pd.Series:
    return pd.Series([value if i < count else old for i, old in enumerate(values)], dtype=values.dtype)


BEFORE = examine(orders(), spec=SPEC, window_end=END)[1]


def test_a_good_snapshot_has_no_findings_in_a_first_and_in_a_later_training() -> None:
    assert findings_of(orders()) == {}
    assert findings_of(orders(), before=BEFORE) == {}
    later = orders(seed=8, end=END + timedelta(days=30))
    assert findings_of(later, before=BEFORE, window_end=END + timedelta(days=30)) == {}


def test_everything_that_breaks_the_model_file_is_found_at_once() -> None:
    good = orders()
    frame = orders(
        km=with_first(with_first(good["km"], count=12, value=900.5), count=3, value=-1.0),
        weather=with_first(good["weather"], count=4, value="fog"),
        outcome=with_first(with_first(good["outcome"], count=5, value="lost"), count=2, value=None),
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


def test_missing_columns_and_other_types_are_reported_and_the_rest_is_still_checked() -> None:
    frame = orders(km=["far"] * ROWS, weather=["fog"] * ROWS).drop(columns="note")
    findings = findings_of(frame)
    assert findings[("columns", "km")] == "holds text where the model file has numbers"
    assert findings[("columns", "note")] == "is not in the snapshot"
    assert ("values", "weather") in findings


def test_a_snapshot_without_its_label_is_refused_and_still_described() -> None:
    findings, statistics = examine(orders().drop(columns="outcome"), spec=SPEC, window_end=END, before=BEFORE)
    assert [(finding.rule, finding.column) for finding in findings] == [("columns", "outcome")]
    assert statistics["columns"]["km"]["distinct"] > 1


def test_empty_and_constant_features_are_distinguished() -> None:
    findings = findings_of(orders(km=[np.nan] * ROWS, weather=np.array(["dry"] * ROWS, dtype=object)), before=BEFORE)
    assert findings[("empty", "km")] == "has no value in any row"
    assert findings[("constant", "weather")] == "has the same value in every row; it had 3 values in the last training"
    flag = np.array(["dry" if number % 2 else None for number in range(ROWS)], dtype=object)
    assert ("constant", "weather") not in findings_of(orders(weather=flag))


def test_a_leak_is_found_in_a_snapshot() -> None:
    late = (orders()["outcome"] == "late").astype(float)
    assert "may have been written after the label" in findings_of(orders(km=late))[("leak", "km")]


def test_a_feature_that_went_missing_after_the_last_training_is_found_in_the_newest_rows() -> None:
    """The ten newest days are a ninth of the rows. The whole window would hide the change."""
    frame = orders(end=END + timedelta(days=10))
    newest = frame["event_time"] > pd.Timestamp(BEFORE["newest_label"])
    frame.loc[newest, "km"] = np.nan
    text = findings_of(frame, before=BEFORE, window_end=END + timedelta(days=10))[("null_share", "km")]
    assert text == f"is missing in 100% of the {newest.sum()} newest rows; in the last training it was in 0%"


def test_gaps_as_in_the_last_training_are_ordinary() -> None:
    gaps = orders()["km"].where(np.arange(ROWS) % 2 == 0)
    before = examine(orders(km=gaps), spec=SPEC, window_end=END)[1]
    assert findings_of(orders(km=gaps), before=before) == {}
    assert ("null_share", "km") in findings_of(orders(km=gaps), before=BEFORE)


def test_a_class_that_was_taken_out_of_the_model_file_is_not_missed() -> None:
    before = BEFORE | {"label": {"classes": BEFORE["label"]["classes"] | {"cancelled": 90}}}
    assert findings_of(orders(), before=before) == {}


def test_a_lost_class_and_a_moved_class_are_two_rules() -> None:
    without_late = findings_of(orders(outcome=np.array(["on time"] * ROWS, dtype=object)), before=BEFORE)
    assert without_late[("lost_class", "outcome")].startswith("is 'late' in no row; in the last training it was in 2")
    swapped = orders()["outcome"].map({"on time": "late", "late": "on time"}).astype(object)
    after_swap = findings_of(orders(outcome=swapped), before=BEFORE)
    assert "in the last training in" in after_swap[("target", "outcome")]
    assert ("lost_class", "outcome") not in after_swap


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(lambda m: m + 5, True), (lambda m: 30 + (m - 30) * 2, True), (lambda m: m + 1, False)],
    ids=["mean", "spread", "little"],
)
def test_a_number_to_predict_is_compared_by_mean_and_spread(minutes: Any, expected: bool) -> None:
    before = examine(orders(), spec=REGRESSION, window_end=END)[1]
    findings = findings_of(orders(minutes=minutes(orders()["minutes"])), spec=REGRESSION, before=before)
    assert (("target", "minutes") in findings) == expected


def test_few_rows_and_less_than_half_of_the_last_training_are_reported() -> None:
    assert "gates.min_rows wants 500" in findings_of(orders(400))[("row_count", None)]
    assert (
        findings_of(orders(), before=BEFORE | {"rows": 2000})[("row_count", None)]
        == "800 rows; the last training had 2,000"
    )
    assert findings_of(orders(), before=BEFORE | {"rows": 2000, "window": "180d"}) == {}  # the model file was changed


@pytest.mark.parametrize(("days", "stale"), [(1, False), (20, True)])
def test_rows_are_stale_if_their_own_rhythm_does_not_explain_their_age(days: int, stale: bool) -> None:
    findings = findings_of(orders(), window_end=END + timedelta(days=days))
    assert (("freshness", None) in findings) == stale


def test_features_that_come_by_the_month_are_not_stale_after_three_weeks() -> None:
    monthly = [END - timedelta(days=21 + 30 * month) for month in (2, 1, 0)]
    assert findings_of(orders(), feature_times=monthly) == {}
    daily = [END - timedelta(days=21 + day) for day in (2, 1, 0)]
    text = findings_of(orders(), feature_times=daily)[("freshness", None)]
    assert text.startswith("the newest feature row is of 2026-09-09 00:00, 21 days before it was due")
    assert text.endswith("otherwise they are at most 1d apart")


def test_data_without_time_is_neither_stale_nor_compared_by_time() -> None:
    file = {name: part for name, part in FILE.items() if name not in {"source", "training"}}
    spec = ModelSpec.parse(file, file="late_orders.yaml")
    frame = orders(event_time=[datetime(1970, 1, 1)] * ROWS)
    before = examine(frame, spec=spec, window_end=END)[1]
    assert findings_of(frame, spec=spec, before=before) == {}
    assert ("null_share", "km") in findings_of(
        frame.assign(km=frame["km"].where(frame.index % 2 == 0)), spec=spec, before=before
    )


def test_the_policy_sets_the_severity_and_errors_come_first() -> None:
    findings = [
        Finding("constant", "a", 1.0, "x"),
        Finding("leak", "b", 1.0, "x"),
        Finding("ranges", "c", 0.1, "x"),
        Finding("values", "d", 0.5, "x"),
        Finding("columns", "e", 1.0, "x"),
    ]
    assert [(v.severity, v.column) for v in grade_findings(findings, Validation())] == [
        ("error", "b"),
        ("error", "e"),
        ("error", "d"),
        ("error", "c"),
        ("warning", "a"),
    ]
    softer = grade_findings(findings, Validation(leak="warning", constant="error"))
    assert [v.column for v in softer if v.severity == "warning"] == ["b"]


def test_the_model_file_sets_the_policy_by_rule_and_an_empty_policy_keeps_the_hash() -> None:
    softer = ModelSpec.parse(FILE | {"validation": {"leak": "warning"}}, file="x.yaml")
    assert (softer.validation.leak, softer.validation.null_share) == ("warning", "error")
    assert ModelSpec.parse(softer.to_json(), file="x.yaml") == softer
    assert ModelSpec.parse(FILE | {"validation": {}}, file="x.yaml").hash == SPEC.hash != softer.hash


@pytest.mark.parametrize(
    ("policy", "message"),
    [({"leaks": "error"}, "validation.leaks: is not a key"), ({"leak": "off"}, "validation.leak: ")],
)
def test_a_policy_with_an_unknown_name_is_refused(policy: dict[str, str], message: str) -> None:
    with pytest.raises(SpecInvalid, match=message):
        ModelSpec.parse(FILE | {"validation": policy}, file="x.yaml")


def test_every_rule_and_its_default_are_documented() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "validation.md").read_text())
    assert rows == [(name, field.default) for name, field in Validation.model_fields.items()]


def report(frame: pd.DataFrame) -> dict[str, Any]:
    findings, statistics = examine(frame, spec=SPEC, window_end=END, before=BEFORE)
    violations = [
        {name: getattr(v, name) for name in ("severity", "rule", "column", "share", "said")}
        for v in grade_findings(findings, SPEC.validation)
    ]
    last = {"run_id": "r1", "window_end": "2026-08-30 00:00"}
    return {
        "model": "late_orders",
        "run_id": "r2",
        "snapshot_id": "s",
        "window_end": "2026-09-30 00:00",
        "compared_with": last,
        "errors": len(violations),
        "warnings": 0,
        "violations": violations,
        "statistics": statistics,
    }


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_no_other_files_and_no_value_becomes_markup() -> None:
    html = render_page(report(orders(weather=np.array(["<script>alert(1)</script>"] * ROWS, dtype=object))))
    tags = Tags(html).tags
    assert "script" not in {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags if {"src", "href"} & set(attrs)]
    assert "url(" not in html
    assert "&lt;script&gt;" in html
    assert html.index("&lt;script&gt;") < html.index("<table>")


def test_the_report_is_strict_json_with_no_entity_and_at_most_one_value_a_violation() -> None:
    frame = orders(km=[np.nan] * ROWS, weather=np.array([f"w{i}" for i in range(ROWS)], dtype=object))
    frame = pd.concat([frame, frame], ignore_index=True)
    text = json.dumps(report(frame), allow_nan=False)
    assert not [name for name in frame["entity_id"] if f"'{name}'" in text or f'"{name}"' in text]
    assert [value for value in frame["weather"].unique() if f"'{value}'" in text] == ["w0"]
