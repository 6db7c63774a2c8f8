"""Check a snapshot against the last training's snapshot and against the usual rhythm of its rows. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from pipelines.artifact.profile import psi
from pipelines.measures.defects import FEWEST_ROWS, JUMP
from pipelines.spec import ModelSpec
from pipelines.validation.rules import Finding
from utils.duration import show_duration

LEAST_ROWS = 0.5  # share of the last training's row count
MOST_SHIFT = 1 / 3  # of the mean, in standard deviations; the stability index is then about 0.1, the limit for classes
MOST_SPREAD = 1.5  # largest ratio of the two standard deviations; the smallest ratio is its inverse
MOST_GAPS = 3  # largest age of the newest row, as a multiple of the longest gap between days with rows


def label_statistics(rows: pd.DataFrame, *, spec: ModelSpec) -> dict[str, Any]:
    """The number of rows of each class. For a regression, the mean, std, min and max of the label.

    One of these four is None if there are too few rows for it.
    """
    label = rows[spec.label.column] if spec.label.column in rows else pd.Series(dtype=float)
    if spec.task != "regression":
        class_counts = label.value_counts()
        return {"classes": {name: int(class_counts.get(name, 0)) for name in spec.label.classes}}
    statistics = {"mean": label.mean(), "std": label.std(), "min": label.min(), "max": label.max()}
    return {name: None if pd.isna(value) else float(value) for name, value in statistics.items()}


def newest_time_by_day(times: pd.Series) -> list[datetime]:
    """The newest time of each day with rows, oldest day first."""
    newest_times = times.groupby(times.dt.normalize()).max()
    return [newest_time.to_pydatetime() for newest_time in newest_times]


def check_row_count(now: Mapping[str, Any], *, spec: ModelSpec, before: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Report too few rows, compared with the model file and the last training's snapshot.

    now: the statistics of the snapshot.
    before: the statistics of the last training's snapshot. None in a first training.
    """
    rows, min_rows = now["rows"], spec.gates.min_rows
    if rows < min_rows:
        yield Finding(
            "row_count", None, 1.0, f"{rows:,} rows in all; gates.min_rows wants {min_rows:,} for the test part alone"
        )
    if before and before["window"] == now["window"] and rows < LEAST_ROWS * before["rows"]:
        yield Finding("row_count", None, 1.0, f"{rows:,} rows; the last training had {before['rows']:,}")


def check_differences(
    frame: pd.DataFrame, labelled: pd.DataFrame, now: Mapping[str, Any], before: Mapping[str, Any], *, spec: ModelSpec
) -> Iterator[Finding]:
    """Report differences from the last training's snapshot.

    The newer rows are compared, because the rows of half a year would hide a source that broke last week. If too few
    rows are newer, all rows are compared.

    frame: all rows of the snapshot.
    labelled: the rows with a usable label.
    now: the statistics of the snapshot.
    before: the statistics of the last training's snapshot.
    """
    newer_rows = _select_newer(frame, before)
    for name, column in now["columns"].items():
        if name in before["columns"] and column["distinct"]:  # `check_variety` reports an empty column
            yield from _check_null_share(name, column["missing"], newer_rows[name], before)
    if not len(labelled):
        return
    newer_labelled = _select_newer(labelled, before)
    rows = newer_labelled if len(newer_labelled) >= FEWEST_ROWS else labelled
    statistics = label_statistics(rows, spec=spec)
    if "classes" in statistics:
        yield from _check_classes(now["label"], statistics, before["label"], spec=spec)
    else:
        yield from _check_numbers(len(rows), statistics, before["label"], spec=spec)


def _select_newer(rows: pd.DataFrame, before: Mapping[str, Any]) -> pd.DataFrame:
    """Select the rows newer than the newest label of the last snapshot. Select no rows if the data has no time."""
    newest_label = before["newest_label"]
    return rows[rows["event_time"] > pd.Timestamp(newest_label)] if newest_label else rows.iloc[:0]


def _check_null_share(name: str, share: float, newer: pd.Series, before: Mapping[str, Any]) -> Iterator[Finding]:
    """Report a feature with far more missing values than in the last training.

    share: the share of missing values in all rows.
    newer: the feature's values in the newer rows.
    """
    last_share = before["columns"][name]["missing"]
    new_share = float(newer.isna().mean()) if len(newer) >= FEWEST_ROWS else 0.0
    if max(share, new_share) > last_share + JUMP and before["rows"] >= FEWEST_ROWS:
        where = f"the {len(newer):,} newest rows" if new_share > share else "the rows"
        text = f"is missing in {max(share, new_share):.0%} of {where}; in the last training it was in {last_share:.0%}"
        yield Finding("null_share", name, max(share, new_share), text)


def _check_classes(
    snapshot: Mapping[str, Any], compared: Mapping[str, Any], last: Mapping[str, Any], *, spec: ModelSpec
) -> Iterator[Finding]:
    """Report lost classes and a changed distribution of classes. Only classes of the model file count.

    snapshot: label statistics of the whole snapshot.
    compared: label statistics of the compared rows.
    last: label statistics of the last snapshot.
    """
    last_counts = {name: count for name, count in last.get("classes", {}).items() if name in snapshot["classes"]}
    for name, count in last_counts.items():
        if count and not snapshot["classes"][name]:
            text = f"is {name!r} in no row; in the last training it was in {count:,}"
            yield Finding("lost_class", spec.label.column, 1.0, text)
    expected = np.array([*last_counts.values()])
    observed = np.array([compared["classes"][name] for name in last_counts])
    stability_index = psi(expected, observed)
    if min(expected.sum(), observed.sum()) >= FEWEST_ROWS and stability_index > spec.monitoring.drift.psi:
        changes = observed / observed.sum() - expected / expected.sum()
        position = int(np.abs(changes).argmax())
        share, name = observed[position] / observed.sum(), [*last_counts][position]
        text = f"is {name!r} in {share:.0%} of {observed.sum():,} rows"
        last_text = f"in the last training in {share - changes[position]:.0%} (stability index {stability_index:.2f})"
        yield Finding("target", spec.label.column, 1.0, f"{text}; {last_text}")


def _check_numbers(
    rows: int, statistics: Mapping[str, Any], last: Mapping[str, Any], *, spec: ModelSpec
) -> Iterator[Finding]:
    """Report a changed mean or standard deviation of the label.

    rows: the number of compared rows.
    statistics: label statistics of the compared rows.
    last: label statistics of the last snapshot.
    """
    if not last.get("std") or statistics["std"] is None or rows < FEWEST_ROWS:
        return
    shift, spread = abs(statistics["mean"] - last["mean"]) / last["std"], statistics["std"] / last["std"]
    if shift > MOST_SHIFT or not 1 / MOST_SPREAD <= spread <= MOST_SPREAD:
        text = f"has mean {statistics['mean']:.4g} and standard deviation {statistics['std']:.4g} in {rows:,} rows"
        last_text = f"in the last training they were {last['mean']:.4g} and {last['std']:.4g}"
        yield Finding("target", spec.label.column, 1.0, f"{text}; {last_text}")


def check_freshness(noun: str, newest_times: Sequence[datetime], *, due: datetime) -> Iterator[Finding]:
    """Report rows that are older than their usual rhythm explains. Monthly rows may be weeks old, but not months.

    noun: the name of the rows in the finding.
    newest_times: the newest time of each day with rows, oldest first.
    due: the time by which the newest row was due (UTC).
    """
    gaps = [later - earlier for earlier, later in pairwise(newest_times)]
    if len(gaps) < 2:
        return  # the rhythm is unknown with fewer than three days
    age, longest_gap = due - newest_times[-1], max(gaps)
    if age > max(timedelta(days=1), MOST_GAPS * longest_gap):
        shown_gap = timedelta(seconds=int(longest_gap.total_seconds()))
        text = f"the newest {noun} is of {newest_times[-1]:%Y-%m-%d %H:%M}, {age.days:,} days before it was due"
        yield Finding("freshness", None, 1.0, f"{text}; otherwise they are at most {show_duration(shown_gap)} apart")
