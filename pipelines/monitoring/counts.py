"""Counting what windows of the log hold over the bins of a profile. Pure: tables in, counts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from sqlalchemy import RowMapping

from pipelines.artifact.profile import counts
from pipelines.measures.drift import PREDICTION


@dataclass(slots=True)
class WindowCounts:
    """One version's rows of one window.

    counts: by feature and under `PREDICTION`, in the order of `profile.counts`; unseen: rows with a category that
    training never saw, by feature. Both leave out an entity's repetitions of the same features: who asks ten times
    tells no more than who asks once, and a test that believed it would find drift everywhere.
    """

    rows: int = 0
    distinct: int = 0
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)
    _told: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.uint64))

    def add(self, rows: pa.Table, *, profile: Mapping[str, Any]) -> None:
        """Count `rows`, as `db.log.reading.predictions` gives them, all of them of the version of `profile`."""
        self.rows += rows.num_rows
        new = rows.filter(pa.array(self._new(rows)))
        if not new.num_rows:
            return
        self.distinct += new.num_rows
        frame = features_of(new, profile=profile)
        for name, entry in profile["features"].items():
            self._count(name, frame[name], entry)
            if "categories" in entry:
                told = pc.sum(pc.match_substring(new["warnings"], f'unseen category: {name}"'))
                self.unseen[name] = self.unseen.get(name, 0) + int(told.as_py() or 0)
        predicted = new["prediction"].to_pandas()
        entry = profile["prediction"]
        self._count(PREDICTION, predicted.astype(float) if "edges" in entry else predicted, entry)

    def _count(self, name: str, values: pd.Series, entry: dict[str, Any]) -> None:
        self.counts[name] = self.counts.get(name, 0) + counts(values, entry)

    def _new(self, rows: pa.Table) -> np.ndarray:
        """Which rows are the first with their entity and features."""
        words = pc.binary_join_element_wise(rows["entity_id"], rows["features"], "\n")
        hashes = pd.util.hash_array(words.to_numpy().astype(object))
        first = np.zeros(len(hashes), dtype=bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        first &= ~np.isin(hashes, self._told)
        self._told = np.concatenate((self._told, hashes[first]))
        return first


def features_of(rows: pa.Table, *, profile: Mapping[str, Any]) -> pd.DataFrame:
    """The features of logged `rows` as columns; one that a row does not have is missing, one unknown is left out."""
    kinds = {name: entry["kind"] for name, entry in profile["features"].items()}
    schema = pa.schema([(name, pa.float64() if kind == "numeric" else pa.string()) for name, kind in kinds.items()])
    lines = BytesIO("\n".join(rows["features"].to_pylist()).encode())
    how = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    parsed: pd.DataFrame = pj.read_json(lines, parse_options=how).to_pandas()
    return parsed


def summed(rows: Sequence[RowMapping]) -> dict[str, np.ndarray]:
    """Counts of several windows of one version together."""
    total: dict[str, np.ndarray] = {}
    for row in rows:
        for name, counted in row["counts"].items():
            total[name] = total.get(name, 0) + np.array(counted)
    return total


def unseen(rows: Sequence[RowMapping]) -> dict[str, int]:
    """Rows with categories never seen in training, by feature, of several windows of one version together."""
    total: dict[str, int] = {}
    for row in rows:
        for name, count in row["quality"].get("unseen", {}).items():
            total[name] = total.get(name, 0) + int(count)
    return total
