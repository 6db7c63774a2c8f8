"""Compare: what a challenger in the shadow said beside what the champion answered, over the log's pairs of rows.

Memory does not grow with the log: counts are over all pairs, quantiles and metrics over a sample drawn from them.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from db.history import deployments, trainings
from db.log import reading
from db.session import session
from pipelines.measures.metrics import FEWEST_UNITS, drawn_together, entity_weights, value
from pipelines.monitoring.truths import Truths, judged_rows, read_truths
from pipelines.runs import training_runs
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from pipelines.training.evaluate import INTERVAL, SLICE_ROWS, Estimate, difference
from utils.errors import NotFound
from utils.settings import Settings

SAMPLE = 50_000  # pairs whose latencies, differences and labels are kept
LEVELS = 1_000  # of a column; rows of further ones are counted together
MISSING_LEVEL, OTHER = "(missing)", "(other)"
SAMPLE_SEED = 7  # of the sample
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

Progress = Callable[[int], None]  # told how many predictions have been read


@dataclass(frozen=True, slots=True)
class Slice:
    """Pairs where `column` is `level`. `apart`: the share with another class, or the mean absolute difference."""

    column: str
    level: str
    rows: int
    apart: float


@dataclass(frozen=True, slots=True)
class BothJudged:
    """Both on the pairs whose truth is known. `better_by` is positive where the challenger is better; 95% interval."""

    labels: int
    metric: str
    champion: float
    challenger: float
    better_by: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Challenger `version` beside what answered in [since, until), UTC.

    answered: predictions of champions, by version. pairs: those that the challenger scored, too. agreement: share of
    pairs with the same class, None for regression. changes: pairs by the two classes, where they differ. difference:
    of the challenger's number from the champion's, its mean, mean size and quantiles of its size; None for classes.
    latency_ms: quantiles for each. The champion's counts from a request's arrival, the challenger's from its turn.
    """

    model: str
    version: int
    since: datetime
    until: datetime
    answered: Mapping[int, int]
    pairs: int
    agreement: float | None
    changes: list[dict[str, Any]]
    difference: Mapping[str, float] | None
    slices: list[Slice]
    latency_ms: Mapping[str, Mapping[str, float]]
    judged: BothJudged | None


def compare_versions(
    settings: Settings,
    spec: ModelSpec,
    *,
    version: int | None = None,
    since: datetime | None = None,
    now: datetime,
    progress: Progress | None = None,
) -> Comparison:
    """Compare challenger `version`, or the last one, with what answered from `since`, or its start, up to `now` (UTC).

    Raises: NotFound where nothing was in the shadow, or nothing of it is logged; Unreachable, AccessDenied.
    """
    with session(settings, "pipeline") as connection:
        row = deployments.last_shadow(connection, spec.name, version=version)
    if row is None:
        which = f"version {version}" if version else "a version"
        raise NotFound(
            what=f"shadow of {which} of {spec.name}", hint=f"evergreen shadow {spec.name} VERSION begins one"
        )
    number, start = int(row["version"]), since or row["created_at"]
    pair_counts, read = _PairCounts(spec), 0
    truths = read_truths(settings, spec, start=start, end=now, known_by=now)
    judged = _JudgedPairs(settings, spec, truths, version=number)
    for champions, shadows in reading.pairs(settings, spec.name, version=number, start=start, end=now):
        pairs = champions.merge(shadows, on="shadow_id", suffixes=("", "_shadow"))
        pair_counts.add(champions, pairs)
        judged.add(pairs)
        read += len(champions)
        if progress:
            progress(read)
    if not pair_counts.pairs:
        raise NotFound(
            what=f"prediction of version {number} in the shadow since {start:%Y-%m-%d %H:%M} UTC",
            hint=f"evergreen shadow {spec.name} says whether the services score it",
        )
    return pair_counts.comparison(version=number, since=start, until=now, judged=judged.result())


class _Sample:
    """At most `SAMPLE` of the rows that are added, each as likely to be among them as any other."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(SAMPLE_SEED)
        self.rows = pd.DataFrame()

    def add(self, rows: pd.DataFrame) -> None:
        drawn = rows.assign(lot=self._random.random(len(rows)))
        self.rows = pd.concat([self.rows, drawn], ignore_index=True) if len(self.rows) else drawn
        if len(self.rows) > SAMPLE:
            self.rows = self.rows.nsmallest(SAMPLE, "lot")


@dataclass
class _PairCounts:
    """What is known of all pairs so far."""

    spec: ModelSpec
    pairs: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    apart: float = 0.0  # pairs that differ, or the sum of the sizes of their differences
    signed: float = 0.0
    slices: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # column, level: rows, apart
    sample: _Sample = field(default_factory=_Sample)

    def add(self, champions: pd.DataFrame, pairs: pd.DataFrame) -> None:
        self.answered.update(champions["version"].tolist())
        self.pairs += len(pairs)
        if self.spec.task == "regression":
            difference = pairs["prediction_shadow"].astype(float) - pairs["prediction"].astype(float)
            apart = difference.abs()
            self.signed += float(difference.sum())
        else:
            apart = (pairs["prediction_shadow"] != pairs["prediction"]).astype(float)
            moved = pairs[apart > 0]
            self.changed.update(zip(moved["prediction"], moved["prediction_shadow"], strict=True))
        self.apart += float(apart.sum())
        for features, each in zip(pairs["features"], apart, strict=True):
            self._slice(json.loads(features), float(each))
        self.sample.add(pairs[["latency_ms", "latency_ms_shadow"]].assign(apart=apart))

    def _slice(self, features: Mapping[str, Any], apart: float) -> None:
        for column in slice_columns(self.spec):
            level = features.get(column)
            levels = self.slices.setdefault(column, {})
            name = MISSING_LEVEL if level is None else str(level)
            counted = levels.setdefault(name if name in levels or len(levels) < LEVELS else OTHER, [0, 0.0])
            counted[0] += 1
            counted[1] += apart

    def comparison(self, *, version: int, since: datetime, until: datetime, judged: BothJudged | None) -> Comparison:
        numeric = self.spec.task == "regression"
        sampled = self.sample.rows
        slices = [
            Slice(column, level, int(rows), apart / rows)
            for column, levels in self.slices.items()
            for level, (rows, apart) in levels.items()
            if rows >= SLICE_ROWS
        ]
        return Comparison(
            model=self.spec.name,
            version=version,
            since=since,
            until=until,
            answered=dict(self.answered),
            pairs=self.pairs,
            agreement=None if numeric else 1 - self.apart / self.pairs,
            changes=[
                {"champion": one, "challenger": other, "rows": rows}
                for (one, other), rows in self.changed.most_common()
            ],
            difference={
                "mean": self.signed / self.pairs,
                "mean_absolute": self.apart / self.pairs,
                **_quantiles(sampled["apart"]),
            }
            if numeric
            else None,
            slices=sorted(slices, key=lambda each: -each.apart),
            latency_ms={
                "champion": _quantiles(sampled["latency_ms"]),
                "challenger": _quantiles(sampled["latency_ms_shadow"]),
            },
            judged=judged,
        )


def slice_columns(spec: ModelSpec) -> list[str]:
    """The columns whose levels are compared by themselves: those of the slice gate, or else all categorical ones."""
    return list(spec.gates.slices.columns) if spec.gates.slices else spec.columns_of("categorical")


class _JudgedPairs:
    """A sample of the pairs whose truth is known. A label that either version learned from judges nothing."""

    def __init__(self, settings: Settings, spec: ModelSpec, truths: Truths, *, version: int) -> None:
        self._settings, self._spec = settings, spec
        self._truths = truths.not_learned_by(self._run(version))
        self._by_champion: dict[int, Truths] = {}  # without what that champion learned from, either
        self._sample = _Sample()

    def add(self, pairs: pd.DataFrame) -> None:
        for champion in map(int, pairs["version"].unique()):
            if champion not in self._by_champion:
                self._by_champion[champion] = self._truths.not_learned_by(self._run(champion))
            rows = pairs[pairs["version"] == champion].drop(columns=["features"])
            self._sample.add(self._by_champion[champion].known(rows))

    def _run(self, version: int) -> Run | None:
        """The training that made a version, or None where this database knows of none."""
        with session(self._settings, "pipeline") as connection:
            run_id = trainings.run_of_version(connection, self._spec.name, version)
        return training_runs.load_run(self._settings, run_id) if run_id else None

    def result(self) -> BothJudged | None:
        """Both judged on the same pairs; None where there are too few, or the metric is not defined on them."""
        rows, spec = self._sample.rows, self._spec
        if len(rows) < FEWEST_UNITS:
            return None
        metric = spec.watched_metric
        theirs = rows.drop(columns=["prediction", "probabilities"]).rename(
            columns={"prediction_shadow": "prediction", "probabilities_shadow": "probabilities"}
        )
        pair = judged_rows(theirs, spec=spec), judged_rows(rows, spec=spec)
        blocks = entity_weights(drawn_together(rows["entity_id"].to_numpy(), rows["created_at"].to_numpy()))
        better_by = difference(metric, pair, blocks, (1 - INTERVAL) / 2)
        found = value(metric, pair[1]), value(metric, pair[0])
        if not np.isfinite([*found, better_by.low, better_by.high]).all():
            return None
        return BothJudged(len(rows), metric, *found, better_by)


def _quantiles(values: pd.Series) -> dict[str, float]:
    return {name: float(values.quantile(q)) for name, q in QUANTILES.items()}
