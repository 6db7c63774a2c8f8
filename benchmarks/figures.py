"""Measured figures: single values, and ratios to a baseline, another way to do the same in the same run.

Only a ratio has a goal. A single time is longer on a busy machine, so it does not show a change of the code.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

type Rounds = Sequence[float]  # one value for each round

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    what: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Ratio(Figure):
    """A figure with its baseline.

    against: the name of the baseline.
    baseline: the value of the baseline.
    ratio: how many times better `value` is than `baseline`.
    goal: the least `ratio`. None if there is no goal.
    met: whether the goal is met. None without a goal.
    """

    against: str
    baseline: float
    ratio: float
    goal: float | None
    met: bool | None


def higher_is_better(
    what: str, values: Rounds, unit: str, *, against: str, baselines: Rounds, goal: float | None = None
) -> Ratio:
    """The medians of both sides over the rounds, and the median of the ratios of each round.

    A round measures both sides one after the other, so other work on the machine affects both.
    """
    ratio = median(value / baseline for value, baseline in zip(values, baselines, strict=True))
    return Ratio(what, median(values), unit, against, median(baselines), ratio, goal, _met(ratio, goal))


def lower_is_better(
    what: str, values: Rounds, unit: str, *, against: str, baselines: Rounds, goal: float | None = None
) -> Ratio:
    """Like `higher_is_better`, for values of which the lower one is better."""
    ratio = median(baseline / value for value, baseline in zip(values, baselines, strict=True))
    return Ratio(what, median(values), unit, against, median(baselines), ratio, goal, _met(ratio, goal))


def _met(ratio: float, goal: float | None) -> bool | None:
    return None if goal is None else ratio >= goal


def write(name: str, figures: Sequence[Figure]) -> Path:
    """Write benchmarks/results/`name`.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n", encoding="utf-8")
    return path
