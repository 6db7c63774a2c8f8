"""Rules that compare a snapshot with the last training's snapshot and with its own rhythm. Pure."""

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

FEWER = 0.5  # of the last training's rows
SHIFT = 1 / 3  # of the label's standard deviation; the stability index is then about 0.1, the limit for classes
SPREAD = 1.5  # times the last standard deviation, or the inverse
GAPS = 3  # times the longest gap between days with rows


def label_statistics(rows: pd.DataFrame, *, spec: ModelSpec) -> dict[str, Any]:
    """The number of rows of each class. For a regression: mean, std, min and max of the label, None without rows."""
    label = rows[spec.label.column] if spec.label.column in rows else pd.Series(dtype=float)
    if spec.task != "regression":
        class_counts = label.value_counts()
        return {"classes": {name: int(class_counts.get(name, 0)) for name in spec.label.classes}}
    statistics = {"mean": label.mean(), "std": label.std(), "min": label.min(), "max": label.max()}
    return {name: None if pd.isna(value) else float(value) for name, value in statistics.items()}


def last_of_days(times: pd.Series) -> list[datetime]:
    """The newest time of each day, oldest day first."""
    newest = times.groupby(times.dt.normalize()).max()
    return [moment.to_pydatetime() for moment in newest]


def row_count(now: Mapping[str, Any], *, spec: ModelSpec, before: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Report too few rows, compared with the model file and the last snapshot.

    now: the snapshot's statistics.
    before: the last snapshot's statistics.
    """
    rows, least = now["rows"], spec.gates.min_rows
    if rows < least:
        yield Finding(
            "row_count", None, 1.0, f"{rows:,} rows in all; gates.min_rows wants {least:,} for the test part alone"
        )
    if before and before["window"] == now["window"] and rows < FEWER * before["rows"]:
        yield Finding("row_count", None, 1.0, f"{rows:,} rows; the last training had {before['rows']:,}")


def differences(
    frame: pd.DataFrame, labelled: pd.DataFrame, now: Mapping[str, Any], before: Mapping[str, Any], *, spec: ModelSpec
) -> Iterator[Finding]:
    """Report differences from the last training's snapshot.

    The newer rows are compared, or all rows where only few are newer: a window of half a year hides a source that
    broke last week.

    labelled: the rows with a usable label.
    now: the snapshot's statistics.
    before: the last snapshot's statistics.
    """
    since = _since(frame, before)
    for name, column in now["columns"].items():
        if name in before["columns"] and column["distinct"]:  # `variety` reports an empty column
            yield from _null_share(name, column["missing"], since[name], before)
    if not len(labelled):
        return
    rows = newest if len(newest := _since(labelled, before)) >= FEWEST_ROWS else labelled
    statistics = label_statistics(rows, spec=spec)
    if "classes" in statistics:
        yield from _classes(now["label"], statistics, before["label"], spec=spec)
    else:
        yield from _numbers(len(rows), statistics, before["label"], spec=spec)


def _since(frame: pd.DataFrame, before: Mapping[str, Any]) -> pd.DataFrame:
    """The rows newer than the last snapshot's newest label. Empty where the data has no time."""
    newest = before["newest_label"]
    return frame[frame["event_time"] > pd.Timestamp(newest)] if newest else frame.iloc[:0]


def _null_share(name: str, share: float, since: pd.Series, before: Mapping[str, Any]) -> Iterator[Finding]:
    last_share = before["columns"][name]["missing"]
    new_share = float(since.isna().mean()) if len(since) >= FEWEST_ROWS else 0.0
    if max(share, new_share) > last_share + JUMP and before["rows"] >= FEWEST_ROWS:
        where = f"the {len(since):,} newest rows" if new_share > share else "the rows"
        text = f"is missing in {max(share, new_share):.0%} of {where}; in the last training it was in {last_share:.0%}"
        yield Finding("null_share", name, max(share, new_share), text)


def _classes(
    snapshot: Mapping[str, Any], compared: Mapping[str, Any], last: Mapping[str, Any], *, spec: ModelSpec
) -> Iterator[Finding]:
    """Report lost classes and a changed distribution of classes. Only the model file's classes count.

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
    index = psi(expected, observed)
    if min(expected.sum(), observed.sum()) >= FEWEST_ROWS and index > spec.monitoring.drift.psi:
        change = observed / observed.sum() - expected / expected.sum()
        largest = int(np.abs(change).argmax())
        share, name = observed[largest] / observed.sum(), [*last_counts][largest]
        text = f"is {name!r} in {share:.0%} of {observed.sum():,} rows"
        last_text = f"in the last training in {share - change[largest]:.0%} (stability index {index:.2f})"
        yield Finding("target", spec.label.column, 1.0, f"{text}; {last_text}")


def _numbers(
    rows: int, statistics: Mapping[str, Any], last: Mapping[str, Any], *, spec: ModelSpec
) -> Iterator[Finding]:
    """Report a changed mean or standard deviation of the label. Both mappings are label statistics."""
    if not last.get("std") or statistics["std"] is None or rows < FEWEST_ROWS:
        return
    shift, spread = abs(statistics["mean"] - last["mean"]) / last["std"], statistics["std"] / last["std"]
    if shift > SHIFT or not 1 / SPREAD <= spread <= SPREAD:
        text = f"has mean {statistics['mean']:.4g} and standard deviation {statistics['std']:.4g} in {rows:,} rows"
        last_text = f"in the last training they were {last['mean']:.4g} and {last['std']:.4g}"
        yield Finding("target", spec.label.column, 1.0, f"{text}; {last_text}")


def freshness(noun: str, newest_of_days: Sequence[datetime], *, due: datetime) -> Iterator[Finding]:
    """Report old rows, compared with their own rhythm: monthly rows may be weeks old, but not months.

    noun: the name of the rows for the message.
    newest_of_days: the newest time of each day with rows, oldest first.
    due: the time by which the newest row was due (UTC).
    """
    gaps = [later - earlier for earlier, later in pairwise(newest_of_days)]
    if len(gaps) < 2:
        return  # too few days for a rhythm
    age, longest = due - newest_of_days[-1], max(gaps)
    if age > max(timedelta(days=1), GAPS * longest):
        longest_gap = timedelta(seconds=int(longest.total_seconds()))
        text = f"the newest {noun} is of {newest_of_days[-1]:%Y-%m-%d %H:%M}, {age.days:,} days before it was due"
        yield Finding("freshness", None, 1.0, f"{text}; otherwise they are at most {show_duration(longest_gap)} apart")
