"""Measured figures: single values, and ratios of a value to a baseline.

A baseline is another way to do the same work, measured in the same run. Only a ratio has a goal. A single value also
depends on how busy the machine is, so it does not show a change of the code.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

type Rounds = Sequence[float]  # one value per round

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    what: what was measured.
    value: the value, in `unit`.
    """

    what: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Ratio(Figure):
    """A figure that is compared with a baseline.

    against: the name of the baseline.
    baseline: the value of the baseline, in `unit`.
    ratio: how many times better `value` is than `baseline`.
    goal: the minimum of `ratio`, or None without a goal.
    met: whether the goal is met, or None without a goal.
    """

    against: str
    baseline: float
    ratio: float
    goal: float | None
    met: bool | None


def higher_is_better(
    what: str, values: Rounds, unit: str, *, against: str, baselines: Rounds, goal: float | None = None
) -> Ratio:
    """Return the median of `values`, the median of `baselines`, and the median of the ratios of the rounds.

    A round measures a value and its baseline one after the other, so other work on the machine affects both.
    """
    ratio = median(value / baseline for value, baseline in zip(values, baselines, strict=True))
    return Ratio(what, median(values), unit, against, median(baselines), ratio, goal, _is_met(ratio, goal))


def lower_is_better(
    what: str, values: Rounds, unit: str, *, against: str, baselines: Rounds, goal: float | None = None
) -> Ratio:
    """Do the same as `higher_is_better` for values where less is better, such as times."""
    ratio = median(baseline / value for value, baseline in zip(values, baselines, strict=True))
    return Ratio(what, median(values), unit, against, median(baselines), ratio, goal, _is_met(ratio, goal))


def _is_met(ratio: float, goal: float | None) -> bool | None:
    return None if goal is None else ratio >= goal


def write(name: str, figures: Sequence[Figure]) -> Path:
    """Write benchmarks/results/`name`.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n", encoding="utf-8")
    return path
