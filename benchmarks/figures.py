"""A measured figure, alone or beside its baseline: another way of doing the same, from the same run.

Only a ratio has a goal. On a busier machine every time is longer, and says nothing about a change of the code.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

type Rounds = Sequence[float]  # a value a round

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    what: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Ratio(Figure):
    """`ratio` is how many times better `value` is than `baseline`, which `against` names; `goal` is its least."""

    against: str
    baseline: float
    ratio: float
    goal: float | None
    met: bool | None


def higher_is_better(
    what: str, values: Rounds, unit: str, *, against: str, baselines: Rounds, goal: float | None = None
) -> Ratio:
    """The medians of both sides' rounds, and of the ratios of each round.

    What a round measures of both follows one upon the other, so whatever else the machine was doing met both.
    """
    ratio = median(value / baseline for value, baseline in zip(values, baselines, strict=True))
    return Ratio(what, median(values), unit, against, median(baselines), ratio, goal, _met(ratio, goal))


def lower_is_better(
    what: str, values: Rounds, unit: str, *, against: str, baselines: Rounds, goal: float | None = None
) -> Ratio:
    """As `higher_is_better`."""
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
