"""Data quality: signs of a broken source, whose rows no training should learn from. Pure.

Drift is a change of the world and a reason to retrain. A defect comes from a broken source and is a reason not to
retrain. The size of the change separates the two: a moderate change of the world does not make a feature vanish.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.artifact.profile import reference

JUMP = 0.2  # share of a window's rows, on top of the ordinary share
BEYOND = 0.8  # share of a numeric feature's values in the range of the outermost tenth of training
FEWEST_ROWS = 50  # rows or requests; fewer are not judged


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect of one feature in a window. Shares are of rows, or of requests for the kind `rejected`.

    kind: `missing`, `unseen`, `unit` or `rejected`.
    found: the share in the window.
    ordinary: the share to expect.
    """

    feature: str
    kind: str
    found: float
    ordinary: float

    def __str__(self) -> str:
        predicate = {
            "missing": "is missing in",
            "unseen": "has categories never seen in training in",
            "unit": "lies beyond nearly all of its training values, as in another unit, in",
            "rejected": "is refused in",
        }[self.kind]
        return f"{self.feature} {predicate} {self.found:.0%} of the rows, {self.ordinary:.0%} is ordinary"


def defects(
    profile: Mapping[str, Any],
    window: Mapping[str, np.ndarray],
    *,
    unseen: Mapping[str, int],
    drifted: frozenset[str],
    base: Mapping[str, np.ndarray] | None = None,
) -> list[Defect]:
    """The defects of a window, feature by feature. `base` replaces the profile's own counts in the comparison.

    Only a feature in `drifted` can have changed its unit. A feature that grows without end also lies beyond its
    training values, but its training windows moved as much, so it has not drifted.
    """
    return [
        defect
        for name, entry in profile["features"].items()
        if name in window and window[name].sum() >= FEWEST_ROWS
        for defect in _feature_defects(
            name, entry, window[name], reference(entry) if base is None else base[name], unseen, drifted
        )
    ]


def rejected(requests: Mapping[str, int], *, rows: int, ordinary: float) -> list[Defect]:
    """The fields for which too many of a window's requests were refused.

    requests: the number of refused requests, by field.
    rows: the number of answered rows.
    ordinary: the share of refused requests to expect.
    """
    results = []
    for name, refused in requests.items():
        share = refused / (refused + rows)
        if refused >= FEWEST_ROWS and share > ordinary + JUMP:
            results.append(Defect(name, "rejected", share, ordinary))
    return results


def _feature_defects(
    name: str,
    entry: Mapping[str, Any],
    window: np.ndarray,
    base: np.ndarray,
    unseen: Mapping[str, int],
    drifted: frozenset[str],
) -> Iterator[Defect]:
    missing, base_missing = window[-1] / window.sum(), base[-1] / max(1, base.sum())
    if missing > base_missing + JUMP:
        yield Defect(name, "missing", float(missing), float(base_missing))
    share = unseen.get(name, 0) / window.sum()
    if share > JUMP:
        yield Defect(name, "unseen", float(share), 0.0)
    values, base_values = window[:-1], base[:-1]
    if "edges" in entry and name in drifted and len(values) > 2 and values.sum() >= FEWEST_ROWS:
        for end in (0, -1):
            beyond, base_beyond = values[end] / values.sum(), base_values[end] / max(1, base_values.sum())
            if beyond > BEYOND and base_beyond < BEYOND / 2:
                yield Defect(name, "unit", float(beyond), float(base_beyond))
