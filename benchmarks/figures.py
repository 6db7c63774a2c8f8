"""A measured figure beside its baseline, from the same run on the same machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """`ratio` is how many times better `value` is than `baseline`; `goal` is what `ratio` must reach, if anything.

    Without a baseline `goal` is what `value` itself must keep to.
    """

    what: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    goal: float | None = None
    met: bool | None = None


def higher_is_better(what: str, value: float, unit: str, *, baseline: float, goal: float | None = None) -> Figure:
    ratio = value / baseline
    return Figure(what, value, unit, baseline, ratio, goal, None if goal is None else ratio >= goal)


def lower_is_better(what: str, value: float, unit: str, *, baseline: float, goal: float | None = None) -> Figure:
    ratio = baseline / value
    return Figure(what, value, unit, baseline, ratio, goal, None if goal is None else ratio >= goal)


def within(what: str, value: float, unit: str, *, most: float | None = None, least: float | None = None) -> Figure:
    """A figure that must not be above `most`, or not below `least`; one of them is given."""
    goal = most if most is not None else least
    assert goal is not None
    met = value <= goal if most is not None else value >= goal
    return Figure(f"{what} ({'at most' if most is not None else 'at least'})", value, unit, goal=goal, met=met)


def write(name: str, figures: Sequence[Figure]) -> Path:
    """Write benchmarks/results/`name`.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n", encoding="utf-8")
    return path
