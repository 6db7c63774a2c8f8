"""The rules that a snapshot is held against: the last training's snapshot, and its own rhythm. Pure."""

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
SHIFT = 1 / 3  # of the label's standard deviation: the stability index is then about 0.1, as for classes
SPREAD = 1.5  # times the last standard deviation, or the inverse
GAPS = 3  # times the longest time without rows


def label_statistics(rows: pd.DataFrame, *, spec: ModelSpec) -> dict[str, Any]:
    """Rows of each class; or mean, std, min and max of the label, None where there are none."""
    label = rows[spec.label.column] if spec.label.column in rows else pd.Series(dtype=float)
    if spec.task != "regression":
        counted = label.value_counts()
        return {"classes": {name: int(counted.get(name, 0)) for name in spec.label.classes}}
    found = {"mean": label.mean(), "std": label.std(), "min": label.min(), "max": label.max()}
    return {name: None if pd.isna(value) else float(value) for name, value in found.items()}


def last_of_days(times: pd.Series) -> list[datetime]:
    """The newest of each day's times, oldest first."""
    newest = times.groupby(times.dt.normalize()).max()
    return [moment.to_pydatetime() for moment in newest]


def row_count(now: Mapping[str, Any], *, spec: ModelSpec, before: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Too few rows, by the model file and by the last snapshot. `now`, `before`: their statistics."""
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
    """What differs from the last training's snapshot, in the rows that came since it or, where they are few, in all.

    A window of half a year hides what broke last week. `labelled`: the rows with a label that can be learned; `now`,
    `before`: the statistics of the two snapshots.
    """
    since = _since(frame, before)
    for name, column in now["columns"].items():
        if name in before["columns"] and column["distinct"]:  # an empty one is told already
            yield from _null_share(name, column["missing"], since[name], before)
    if not len(labelled):
        return
    rows = newest if len(newest := _since(labelled, before)) >= FEWEST_ROWS else labelled
    there = label_statistics(rows, spec=spec)
    if "classes" in there:
        yield from _classes(now["label"], there, before["label"], spec=spec)
    else:
        yield from _numbers(len(rows), there, before["label"], spec=spec)


def _since(frame: pd.DataFrame, before: Mapping[str, Any]) -> pd.DataFrame:
    """Rows newer than the last snapshot's newest label; none where the data has no time."""
    newest = before["newest_label"]
    return frame[frame["event_time"] > pd.Timestamp(newest)] if newest else frame.iloc[:0]


def _null_share(name: str, share: float, since: pd.Series, before: Mapping[str, Any]) -> Iterator[Finding]:
    was = before["columns"][name]["missing"]
    new = float(since.isna().mean()) if len(since) >= FEWEST_ROWS else 0.0
    if max(share, new) > was + JUMP and before["rows"] >= FEWEST_ROWS:
        where = f"the {len(since):,} newest rows" if new > share else "the rows"
        said = f"is missing in {max(share, new):.0%} of {where}; in the last training it was in {was:.0%}"
        yield Finding("null_share", name, max(share, new), said)


def _classes(
    now: Mapping[str, Any], newest: Mapping[str, Any], was: Mapping[str, Any], *, spec: ModelSpec
) -> Iterator[Finding]:
    """`now`: of the whole snapshot, `newest`: of the rows that are compared. Only the model file's classes count."""
    known = {name: count for name, count in was.get("classes", {}).items() if name in now["classes"]}
    for name, count in known.items():
        if count and not now["classes"][name]:
            said = f"is {name!r} in no row; in the last training it was in {count:,}"
            yield Finding("lost_class", spec.label.column, 1.0, said)
    expected, found = np.array([*known.values()]), np.array([newest["classes"][name] for name in known])
    index = psi(expected, found)
    if min(expected.sum(), found.sum()) >= FEWEST_ROWS and index > spec.monitoring.drift.psi:
        moved = found / found.sum() - expected / expected.sum()
        most = int(np.abs(moved).argmax())
        share, name = found[most] / found.sum(), [*known][most]
        said = f"is {name!r} in {share:.0%} of {found.sum():,} rows; in the last training in {share - moved[most]:.0%}"
        yield Finding("target", spec.label.column, 1.0, f"{said} (stability index {index:.2f})")


def _numbers(rows: int, now: Mapping[str, Any], was: Mapping[str, Any], *, spec: ModelSpec) -> Iterator[Finding]:
    if not was.get("std") or now["std"] is None or rows < FEWEST_ROWS:
        return
    shift, spread = abs(now["mean"] - was["mean"]) / was["std"], now["std"] / was["std"]
    if shift > SHIFT or not 1 / SPREAD <= spread <= SPREAD:
        said = f"has mean {now['mean']:.4g} and standard deviation {now['std']:.4g} in {rows:,} rows"
        last = f"in the last training they were {was['mean']:.4g} and {was['std']:.4g}"
        yield Finding("target", spec.label.column, 1.0, f"{said}; {last}")


def freshness(what: str, newest_of_days: Sequence[datetime], *, due: datetime) -> Iterator[Finding]:
    """`newest_of_days`: the newest time of each day with rows. What comes by the month may be weeks old, not months."""
    gaps = [later - earlier for earlier, later in pairwise(newest_of_days)]
    if len(gaps) < 2:
        return  # it has no rhythm
    age, longest = due - newest_of_days[-1], max(gaps)
    if age > max(timedelta(days=1), GAPS * longest):
        whole = timedelta(seconds=int(longest.total_seconds()))
        said = f"the newest {what} is of {newest_of_days[-1]:%Y-%m-%d %H:%M}, {age.days:,} days before it was due"
        yield Finding("freshness", None, 1.0, f"{said}; otherwise they are at most {show_duration(whole)} apart")
