"""Count the rows of log windows over the bins of a profile. Pure."""

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

from pipelines.artifact.profile import count_by_bin
from pipelines.measures.drift import PREDICTION


@dataclass(slots=True)
class WindowCounts:
    """The rows of one version in one window.

    `counts` and `unseen` leave out an entity's repetitions of the same features. Ten equal requests hold no more
    information than one, and a test that counted them all would report drift everywhere.

    rows: the number of rows.
    distinct: the number of rows without repetitions.
    counts: by feature and under `PREDICTION`, in the order of `profile.count_by_bin`.
    unseen: the number of rows with a category that training never saw, by feature.
    """

    rows: int = 0
    distinct: int = 0
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)
    _hashes: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.uint64))

    def add(self, rows: pa.Table, *, profile: Mapping[str, Any]) -> None:
        """Count `rows` of `db.log.reading.predictions`. All rows are of the version of `profile`."""
        self.rows += rows.num_rows
        new = rows.filter(pa.array(self._first_occurrences(rows)))
        if not new.num_rows:
            return
        self.distinct += new.num_rows
        frame = features_of(new, profile=profile)
        for name, entry in profile["features"].items():
            self._count(name, frame[name], entry)
            if "categories" in entry:
                matches = pc.sum(pc.match_substring(new["warnings"], f'unseen category: {name}"'))
                self.unseen[name] = self.unseen.get(name, 0) + int(matches.as_py() or 0)
        predicted = new["prediction"].to_pandas()
        entry = profile["prediction"]
        self._count(PREDICTION, predicted.astype(float) if "edges" in entry else predicted, entry)

    def _count(self, name: str, values: pd.Series, entry: dict[str, Any]) -> None:
        self.counts[name] = self.counts.get(name, 0) + count_by_bin(values, entry)

    def _first_occurrences(self, rows: pa.Table) -> np.ndarray:
        """A mask of the rows that are the first with their entity and features."""
        keys = pc.binary_join_element_wise(rows["entity_id"], rows["features"], "\n")
        hashes = pd.util.hash_array(keys.to_numpy().astype(object))
        first = np.zeros(len(hashes), dtype=bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        first &= ~np.isin(hashes, self._hashes)
        self._hashes = np.concatenate((self._hashes, hashes[first]))
        return first


def features_of(rows: pa.Table, *, profile: Mapping[str, Any]) -> pd.DataFrame:
    """The features of logged `rows` as columns. Absent features are missing values, unknown features are left out."""
    kinds = {name: entry["kind"] for name, entry in profile["features"].items()}
    schema = pa.schema([(name, pa.float64() if kind == "numeric" else pa.string()) for name, kind in kinds.items()])
    lines = BytesIO("\n".join(rows["features"].to_pylist()).encode())
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    parsed: pd.DataFrame = pj.read_json(lines, parse_options=options).to_pandas()
    return parsed


def summed(rows: Sequence[RowMapping]) -> dict[str, np.ndarray]:
    """The sums of the counts of several windows of one version."""
    total: dict[str, np.ndarray] = {}
    for row in rows:
        for name, bins in row["counts"].items():
            total[name] = total.get(name, 0) + np.array(bins)
    return total


def unseen(rows: Sequence[RowMapping]) -> dict[str, int]:
    """The number of rows with unseen categories, by feature, in several windows of one version."""
    total: dict[str, int] = {}
    for row in rows:
        for name, count in row["quality"].get("unseen", {}).items():
            total[name] = total.get(name, 0) + int(count)
    return total
