"""Data quality: signs that a source broke, which no training should learn from. Pure.

Drift is the world's doing and a reason to retrain; a broken source is a defect and a reason not to. They are told apart
by how much changed at once: a moderate change of the world makes no feature vanish.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.artifact.profile import reference

JUMP = 0.2  # share of a window's rows, in addition to what is ordinary
BEYOND = 0.8  # share of a numeric feature's values that lie where only the outermost tenth of training did
FEWEST_ROWS = 50  # rows or requests; fewer say nothing


@dataclass(frozen=True, slots=True)
class Defect:
    """`found` and `ordinary` are shares of rows, or of requests for `rejected`."""

    feature: str
    kind: str
    found: float
    ordinary: float

    def __str__(self) -> str:
        told = {
            "missing": "is missing in",
            "unseen": "has categories never seen in training in",
            "unit": "lies beyond nearly all of its training values, as in another unit, in",
            "rejected": "is refused in",
        }[self.kind]
        return f"{self.feature} {told} {self.found:.0%} of the rows, {self.ordinary:.0%} is ordinary"


def defects(
    profile: Mapping[str, Any],
    found: Mapping[str, np.ndarray],
    *,
    unseen: Mapping[str, int],
    drifted: frozenset[str],
    base: Mapping[str, np.ndarray] | None = None,
) -> list[Defect]:
    """What is broken in a window, feature by feature. `base`: counts to compare with instead of the profile's own.

    A feature that grows without end lies beyond its training values too, but its training windows strayed as much:
    it has not `drifted`, and only what drifted can be in another unit.
    """
    return [
        defect
        for name, entry in profile["features"].items()
        if name in found and found[name].sum() >= FEWEST_ROWS
        for defect in _of(name, entry, found[name], reference(entry) if base is None else base[name], unseen, drifted)
    ]


def rejected(requests: Mapping[str, int], *, rows: int, ordinary: float) -> list[Defect]:
    """Fields that too many of a window's requests were refused for. `rows` were answered; `ordinary` is a share."""
    found = []
    for name, refused in requests.items():
        share = refused / (refused + rows)
        if refused >= FEWEST_ROWS and share > ordinary + JUMP:
            found.append(Defect(name, "rejected", share, ordinary))
    return found


def _of(
    name: str,
    entry: Mapping[str, Any],
    found: np.ndarray,
    base: np.ndarray,
    unseen: Mapping[str, int],
    drifted: frozenset[str],
) -> Iterator[Defect]:
    missing, before = found[-1] / found.sum(), base[-1] / max(1, base.sum())
    if missing > before + JUMP:
        yield Defect(name, "missing", float(missing), float(before))
    share = unseen.get(name, 0) / found.sum()
    if share > JUMP:
        yield Defect(name, "unseen", float(share), 0.0)
    known, ordinary = found[:-1], base[:-1]
    if "edges" in entry and name in drifted and len(known) > 2 and known.sum() >= FEWEST_ROWS:
        for end in (0, -1):
            beyond, usual = known[end] / known.sum(), ordinary[end] / max(1, ordinary.sum())
            if beyond > BEYOND and usual < BEYOND / 2:
                yield Defect(name, "unit", float(beyond), float(usual))
