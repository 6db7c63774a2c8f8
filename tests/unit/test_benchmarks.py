"""Goals of benchmarks: ratios to a baseline of the same run. They do not depend on the machine."""

import json
from dataclasses import fields

import pytest

from benchmarks.figures import RESULTS, Figure, Ratio, higher_is_better, lower_is_better
from benchmarks.run import NAMES


def test_only_a_ratio_to_a_baseline_can_have_a_goal() -> None:
    assert {each.name for each in fields(Figure)} == {"what", "value", "unit"}
    needed = {each.name: each.type for each in fields(Ratio)}
    assert (needed["against"], needed["baseline"], needed["ratio"]) == (str, float, float)


def test_a_machine_that_is_slow_for_a_round_changes_no_ratio() -> None:
    slow = higher_is_better("rows", [100, 100, 25], "rows/s", against="plain", baselines=[50, 50, 12.5], goal=2.0)
    assert (slow.value, slow.baseline, slow.ratio, slow.met) == (100, 50, 2.0, True)
    late = lower_is_better("time", [1, 8, 8], "ms", against="plain", baselines=[0.5, 4, 4], goal=0.6)
    assert (late.value, late.baseline, late.ratio, late.met) == (8, 4, 0.5, False)


def test_without_a_goal_nothing_is_met_or_missed() -> None:
    assert higher_is_better("rows", [1], "rows/s", against="plain", baselines=[2]).met is None


@pytest.mark.parametrize("name", NAMES)
def test_every_goal_in_the_results_names_the_baseline_it_is_measured_against(name: str) -> None:
    figures = json.loads((RESULTS / f"{name}.json").read_text())
    goals = [figure for figure in figures if figure.get("goal") is not None]
    assert goals
    for figure in goals:
        assert figure["against"], figure["what"]
        assert figure["baseline"] > 0, figure["what"]
        assert figure["met"] == (figure["ratio"] >= figure["goal"]), figure["what"]
