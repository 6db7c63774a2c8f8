"""Find defects: signs that the source of a feature is broken. Pure.

Drift is a real change and a reason to retrain. A defect is an error in the data and a reason not to retrain. Only large
changes count as defects, because a real change is rarely so large.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.artifact.profile import recorded_counts

JUMP = 0.2  # the share of rows by which a defect exceeds the ordinary share
OUTER_SHARE = 0.8  # if more values are in the range of the outermost tenth of training, the unit has changed
FEWEST_ROWS = 50  # rows or requests; with fewer, no defect is reported


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect of one feature in a window.

    kind: `missing`, `unseen`, `unit` or `rejected`.
    share: the share of the window's rows with the defect. For `rejected`, the share of its requests.
    ordinary_share: the share to expect.
    """

    feature: str
    kind: str
    share: float
    ordinary_share: float

    def __str__(self) -> str:
        predicate = {
            "missing": "is missing in",
            "unseen": "has categories never seen in training in",
            "unit": "lies beyond nearly all of its training values, as in another unit, in",
            "rejected": "is refused in",
        }[self.kind]
        return f"{self.feature} {predicate} {self.share:.0%} of the rows, {self.ordinary_share:.0%} is ordinary"

    def to_json(self) -> dict[str, Any]:
        """The defect as monitoring stores it. There the keys of the shares are `found` and `ordinary`."""
        shares = {"found": self.share, "ordinary": self.ordinary_share}
        return {"feature": self.feature, "kind": self.kind, **shares}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Defect":
        """Build a defect from the output of `to_json`."""
        return cls(content["feature"], content["kind"], content["found"], content["ordinary"])


def find_defects(
    profile: Mapping[str, Any],
    window: Mapping[str, np.ndarray],
    *,
    unseen: Mapping[str, int],
    drifted: frozenset[str],
    base: Mapping[str, np.ndarray] | None = None,
) -> list[Defect]:
    """Find the defects of a window, feature by feature.

    window: the counts of the window by feature, in the order of `profile.count_by_bin`.
    unseen: the number of rows with a category that no training row had, by feature.
    drifted: the features that drift in the window. Only these can have changed their unit. A feature that always grows
        leaves the range of its training values too, but has not drifted.
    base: counts that replace those of the profile in the comparison.
    """
    return [
        defect
        for name, entry in profile["features"].items()
        if name in window and window[name].sum() >= FEWEST_ROWS
        for defect in _feature_defects(
            name, entry, window[name], recorded_counts(entry) if base is None else base[name], unseen, drifted
        )
    ]


def find_rejections(requests: Mapping[str, int], *, rows: int, ordinary: float) -> list[Defect]:
    """Find the fields for which too many requests of a window were rejected.

    requests: the number of rejected requests, by field.
    rows: the number of answered rows.
    ordinary: the share of rejected requests to expect.
    """
    rejections = []
    for name, rejected in requests.items():
        share = rejected / (rejected + rows)
        if rejected >= FEWEST_ROWS and share > ordinary + JUMP:
            rejections.append(Defect(name, "rejected", share, ordinary))
    return rejections


def _feature_defects(
    name: str,
    entry: Mapping[str, Any],
    window: np.ndarray,
    base: np.ndarray,
    unseen: Mapping[str, int],
    drifted: frozenset[str],
) -> Iterator[Defect]:
    missing_share, base_missing_share = window[-1] / window.sum(), base[-1] / max(1, base.sum())
    if missing_share > base_missing_share + JUMP:
        yield Defect(name, "missing", float(missing_share), float(base_missing_share))
    unseen_share = unseen.get(name, 0) / window.sum()
    if unseen_share > JUMP:
        yield Defect(name, "unseen", float(unseen_share), 0.0)
    values, base_values = window[:-1], base[:-1]
    if "edges" in entry and name in drifted and len(values) > 2 and values.sum() >= FEWEST_ROWS:
        for end in (0, -1):
            outer_share, base_outer_share = values[end] / values.sum(), base_values[end] / max(1, base_values.sum())
            if outer_share > OUTER_SHARE and base_outer_share < OUTER_SHARE / 2:
                yield Defect(name, "unit", float(outer_share), float(base_outer_share))
