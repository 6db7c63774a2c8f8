"""Compare a challenger's predictions in the shadow with the champion's answers, over the log's pairs of rows.

Memory does not grow with the log. Counts are over all pairs, quantiles and metrics over a random sample of pairs.
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
from pipelines.measures.metrics import FEWEST_UNITS, entity_weights, metric_value, resampling_units
from pipelines.monitoring.truths import Truths, judged_rows, read_truths
from pipelines.runs import training_runs
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from pipelines.training.evaluate import INTERVAL, SLICE_ROWS, Estimate, estimate_difference
from utils.errors import NotFound
from utils.settings import Settings

SAMPLE = 50_000  # pairs whose latencies, differences and labels are kept
LEVELS = 1_000  # levels of a column; rows of more levels are counted as `OTHER`
MISSING_LEVEL, OTHER = "(missing)", "(other)"
SAMPLE_SEED = 7  # fixed, so that the same rows give the same sample
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

Progress = Callable[[int], None]  # gets the number of predictions that were read


@dataclass(frozen=True, slots=True)
class Slice:
    """The pairs where `column` is `level`.

    rows: the number of pairs.
    apart: the share of pairs with different classes, or the mean absolute difference for a regression.
    """

    column: str
    level: str
    rows: int
    apart: float


@dataclass(frozen=True, slots=True)
class BothJudged:
    """Champion and challenger on the sampled pairs with a known truth.

    labels: the number of pairs.
    champion, challenger: the metric of each.
    better_by: the difference with a 95% interval. Positive where the challenger is better.
    """

    labels: int
    metric: str
    champion: float
    challenger: float
    better_by: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Challenger `version` compared with the versions that answered in [since, until), UTC.

    answered: the number of champions' predictions, by version.
    pairs: the number of these predictions that the challenger scored too.
    agreement: the share of pairs with the same class. None for a regression.
    changes: the number of pairs with different classes, by the two classes.
    difference: the mean, mean absolute value and absolute quantiles of challenger minus champion. None for classes.
    slices: the slices, the largest difference first.
    latency_ms: quantiles for each. The champion's starts at a request's arrival, the challenger's at its scoring.
    judged: the metrics on pairs with a known truth. None where there are too few.
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
    """Compare challenger `version` with the versions that answered from `since` to `now` (UTC).

    version: the last challenger by default.
    since: the challenger's start by default.

    Raises:
        NotFound: no version was in the shadow, or none of its predictions is logged.
        Unreachable, AccessDenied.
    """
    with session(settings, "pipeline") as connection:
        row = deployments.last_shadow(connection, spec.name, version=version)
    if row is None:
        subject = f"version {version}" if version else "a version"
        raise NotFound(
            what=f"shadow of {subject} of {spec.name}", hint=f"evergreen shadow {spec.name} VERSION begins one"
        )
    number, start = int(row["version"]), since or row["created_at"]
    pair_counts, predictions_read = _PairCounts(spec), 0
    truths = read_truths(settings, spec, start=start, end=now, known_by=now)
    judged = _JudgedPairs(settings, spec, truths, version=number)
    for champions, shadows in reading.pairs(settings, spec.name, version=number, start=start, end=now):
        pairs = champions.merge(shadows, on="shadow_id", suffixes=("", "_shadow"))
        pair_counts.add(champions, pairs)
        judged.add(pairs)
        predictions_read += len(champions)
        if progress:
            progress(predictions_read)
    if not pair_counts.pairs:
        raise NotFound(
            what=f"prediction of version {number} in the shadow since {start:%Y-%m-%d %H:%M} UTC",
            hint=f"evergreen shadow {spec.name} says whether the services score it",
        )
    return pair_counts.comparison(version=number, since=start, until=now, judged=judged.result())


class _Sample:
    """A random sample of at most `SAMPLE` of the added rows. Each row is equally likely to be in it."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(SAMPLE_SEED)
        self.rows = pd.DataFrame()

    def add(self, rows: pd.DataFrame) -> None:
        numbered = rows.assign(lot=self._random.random(len(rows)))
        self.rows = pd.concat([self.rows, numbered], ignore_index=True) if len(self.rows) else numbered
        if len(self.rows) > SAMPLE:
            self.rows = self.rows.nsmallest(SAMPLE, "lot")


@dataclass
class _PairCounts:
    """The counts over all pairs so far."""

    spec: ModelSpec
    pairs: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    apart: float = 0.0  # number of differing pairs, or sum of absolute differences
    signed_sum: float = 0.0
    slices: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # column, level: rows, apart
    sample: _Sample = field(default_factory=_Sample)

    def add(self, champions: pd.DataFrame, pairs: pd.DataFrame) -> None:
        self.answered.update(champions["version"].tolist())
        self.pairs += len(pairs)
        if self.spec.task == "regression":
            difference = pairs["prediction_shadow"].astype(float) - pairs["prediction"].astype(float)
            apart = difference.abs()
            self.signed_sum += float(difference.sum())
        else:
            apart = (pairs["prediction_shadow"] != pairs["prediction"]).astype(float)
            differing = pairs[apart > 0]
            self.changed.update(zip(differing["prediction"], differing["prediction_shadow"], strict=True))
        self.apart += float(apart.sum())
        for features, distance in zip(pairs["features"], apart, strict=True):
            self._slice(json.loads(features), float(distance))
        self.sample.add(pairs[["latency_ms", "latency_ms_shadow"]].assign(apart=apart))

    def _slice(self, features: Mapping[str, Any], apart: float) -> None:
        for column in slice_columns(self.spec):
            level = features.get(column)
            levels = self.slices.setdefault(column, {})
            name = MISSING_LEVEL if level is None else str(level)
            totals = levels.setdefault(name if name in levels or len(levels) < LEVELS else OTHER, [0, 0.0])
            totals[0] += 1
            totals[1] += apart

    def comparison(self, *, version: int, since: datetime, until: datetime, judged: BothJudged | None) -> Comparison:
        numeric = self.spec.task == "regression"
        sample = self.sample.rows
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
                {"champion": champion, "challenger": challenger, "rows": rows}
                for (champion, challenger), rows in self.changed.most_common()
            ],
            difference={
                "mean": self.signed_sum / self.pairs,
                "mean_absolute": self.apart / self.pairs,
                **_quantiles(sample["apart"]),
            }
            if numeric
            else None,
            slices=sorted(slices, key=lambda item: -item.apart),
            latency_ms={
                "champion": _quantiles(sample["latency_ms"]),
                "challenger": _quantiles(sample["latency_ms_shadow"]),
            },
            judged=judged,
        )


def slice_columns(spec: ModelSpec) -> list[str]:
    """The columns that form slices: the columns of the slice gate, or else all categorical columns."""
    return list(spec.gates.slices.columns) if spec.gates.slices else spec.columns_of("categorical")


class _JudgedPairs:
    """A sample of the pairs with a known truth. Labels that either version learned from are left out."""

    def __init__(self, settings: Settings, spec: ModelSpec, truths: Truths, *, version: int) -> None:
        self._settings, self._spec = settings, spec
        self._truths = truths.not_learned_by(self._run(version))
        self._by_champion: dict[int, Truths] = {}  # also without labels that this champion learned from
        self._sample = _Sample()

    def add(self, pairs: pd.DataFrame) -> None:
        for champion in map(int, pairs["version"].unique()):
            if champion not in self._by_champion:
                self._by_champion[champion] = self._truths.not_learned_by(self._run(champion))
            rows = pairs[pairs["version"] == champion].drop(columns=["features"])
            self._sample.add(self._by_champion[champion].add_truths(rows))

    def _run(self, version: int) -> Run | None:
        """The training that made a version. None if this database does not have it."""
        with session(self._settings, "pipeline") as connection:
            run_id = trainings.run_of_version(connection, self._spec.name, version)
        return training_runs.load_run(self._settings, run_id) if run_id else None

    def result(self) -> BothJudged | None:
        """Judge both on the same pairs. None where there are too few pairs, or the metric is undefined on them."""
        rows, spec = self._sample.rows, self._spec
        if len(rows) < FEWEST_UNITS:
            return None
        metric = spec.watched_metric
        challenger_rows = rows.drop(columns=["prediction", "probabilities"]).rename(
            columns={"prediction_shadow": "prediction", "probabilities_shadow": "probabilities"}
        )
        pair = judged_rows(challenger_rows, spec=spec), judged_rows(rows, spec=spec)
        blocks = entity_weights(resampling_units(rows["entity_id"].to_numpy(), rows["created_at"].to_numpy()))
        better_by = estimate_difference(metric, pair, blocks, (1 - INTERVAL) / 2)
        values = metric_value(metric, pair[1]), metric_value(metric, pair[0])
        if not np.isfinite([*values, better_by.low, better_by.high]).all():
            return None
        return BothJudged(len(rows), metric, *values, better_by)


def _quantiles(values: pd.Series) -> dict[str, float]:
    return {name: float(values.quantile(q)) for name, q in QUANTILES.items()}
