"""Scenarios: the example worlds changed moderately, for seeing what the platform makes of it.

    none       nothing
    covariate  some values rise, as incomes; who they are that ask changes, the rule that makes labels does not
    concept    the rule changes; those who ask look the same as ever
    shift      covariate and concept at once, as when times change
    prior      one class becomes commoner; within each class everybody looks the same as ever
    broken     a source sends one column in another unit and one empty; the truth, and the labels with it, stay

People are drawn anew from the world of their model, so none of them is in the loaded example, and each is drawn once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from stack.example_data import churn, insurance
from stack.example_data.credit_score import CLASSES, CREDIT_RULE, credit_probabilities
from stack.example_data.scenario_names import Scenario
from stack.example_data.world import World, arrays
from stack.example_data.worlds import WORLDS
from utils.errors import NotFound

BLOCK = 2_000  # people whose whole history is made at a time; only the newest row of each is kept
# Complete features and what chance adds → a label a row.
Rule = Callable[[pd.DataFrame, np.random.Generator], Any]


@dataclass(frozen=True, slots=True)
class Levers:
    """What scenarios move in one world. `rising`: columns that covariate multiplies, by the factor.

    `share`: how many of those with a label prior lets through, 0 to 1. `rescaled`, `silent`: of the broken source.
    """

    rule: Rule
    changed_rule: Rule
    rising: Mapping[str, float]
    share: Callable[[pd.Series], Any]
    rescaled: Mapping[str, float]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Those who ask, in their order. `features`: as the source sends them, None or NaN missing. `labels`: the truth."""

    features: pd.DataFrame
    labels: pd.Series


def traffic(model: str, *, scenario: Scenario, end: datetime, rows: int, seed: int) -> Traffic:
    """`rows` people of the world of `model` on the days before `end` (UTC), under `scenario`.

    The same arguments give the same people; fewer rows give the first of them. Under all scenarios but
    `prior` they are the same people.

    Raises: NotFound where the model has no example world, or it has no levers.
    """
    if model not in LEVERS:
        raise NotFound(what=f"example world with scenarios for {model}", hint=f"there is one for {', '.join(LEVERS)}")
    blocks: list[Traffic] = []
    for block in _blocks(model, scenario=scenario, end=end, seed=seed):
        blocks.append(block)
        if sum(len(each.labels) for each in blocks) >= rows:
            break
    features = pd.concat([each.features for each in blocks], ignore_index=True).head(rows)
    return Traffic(features, pd.concat([each.labels for each in blocks], ignore_index=True).head(rows))


def _blocks(model: str, *, scenario: Scenario, end: datetime, seed: int) -> Iterator[Traffic]:
    number = 0
    while True:
        drawn = np.random.SeedSequence([seed, number])
        world = WORLDS[model](end, int(drawn.generate_state(1)[0]), BLOCK)
        yield _changed(world, LEVERS[model], scenario, np.random.default_rng(drawn))
        number += 1


def _changed(world: World, levers: Levers, scenario: Scenario, random: np.random.Generator) -> Traffic:
    # The first column of a world names the entity, and its rows are in the order of time.
    newest = random.permutation(np.flatnonzero(~world.frame.duplicated(world.frame.columns[0], keep="last")))
    complete = world.complete.iloc[newest].reset_index(drop=True)
    sent = world.frame.loc[newest, list(complete.columns)].reset_index(drop=True)
    if scenario in {Scenario.COVARIATE, Scenario.SHIFT}:
        complete, sent = (_multiplied(frame, levers.rising) for frame in (complete, sent))
    rule = levers.changed_rule if scenario in {Scenario.CONCEPT, Scenario.SHIFT} else levers.rule
    labels = pd.Series(rule(complete, random), name=world.label)
    if scenario is Scenario.PRIOR:
        kept = random.random(len(labels)) < levers.share(labels)
        sent, labels = sent[kept], labels[kept]
    if scenario is Scenario.BROKEN:
        sent = _multiplied(sent, levers.rescaled).assign(**dict.fromkeys(levers.silent, np.nan))
    return Traffic(sent, labels)


def _multiplied(frame: pd.DataFrame, factors: Mapping[str, float]) -> pd.DataFrame:
    return frame.assign(**{name: frame[name] * factor for name, factor in factors.items()})


def _credit_rule(rule: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, random: np.random.Generator) -> Any:
        reached = credit_probabilities(complete, rule=rule).cumsum(axis=1)[:, :-1]
        passed = random.random(len(complete))[:, None] > reached
        return np.array(CLASSES, dtype=object)[passed.sum(axis=1)]

    return draw


def _churn_rule(rule: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, random: np.random.Generator) -> Any:
        leaves = random.random(len(complete)) < churn.chance_to_leave(arrays(complete), rule=rule)
        return np.array(churn.CLASSES, dtype=object)[leaves.astype(int)]

    return draw


def _insurance_rule(rule: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, random: np.random.Generator) -> Any:
        expected = insurance.expected_cost(arrays(complete), rule=rule)
        return insurance.cost_around(expected, random.standard_normal(len(complete)))

    return draw


def _by_class(shares: Mapping[str, float]) -> Callable[[pd.Series], Any]:
    return lambda labels: labels.map(shares).to_numpy(dtype=float)


CREDIT = Levers(
    rule=_credit_rule(CREDIT_RULE),
    # Debt and inquiries count several times as much; payments, interest and the length of the history no more.
    changed_rule=_credit_rule(
        {**dict.fromkeys(CREDIT_RULE, 0.0), "outstanding_debt": 1.8, "num_credit_inquiries": 1.4},
    ),
    # Half a standard deviation of the logarithm of incomes.
    rising=dict.fromkeys(("annual_income", "monthly_inhand_salary", "amount_invested_monthly", "monthly_balance"), 1.3),
    share=_by_class({"Poor": 1.0, "Standard": 0.45, "Good": 0.45}),
    rescaled={"annual_income": 1 / 1000},  # thousands of USD
    silent=("monthly_inhand_salary",),
)
CHURN = Levers(
    rule=_churn_rule(churn.RULE),
    # Contracts bind less, patience with the support is shorter, and who watches much has soon seen it all.
    changed_rule=_churn_rule({**churn.RULE, "contract": 0.9, "support_tickets": 1.1, "hours_a_week": 0.5}),
    rising={"hours_a_week": 1.4},  # half a standard deviation of the logarithm
    share=_by_class({"leaves": 1.0, "stays": 0.45}),
    rescaled={"days_since_login": 1 / 30},  # months
    silent=("hours_a_week",),
)
EXPENSIVE = 10_000  # USD a year
INSURANCE = Levers(
    rule=_insurance_rule(insurance.RULE),
    # Treatment becomes dear, age and smoking matter less.
    changed_rule=_insurance_rule({"age": 2.0, "smoker": 0.8, "conditions": 1.8}),
    rising={"bmi": 1.075},  # half a standard deviation
    share=lambda labels: np.where(labels > EXPENSIVE, 1.0, 0.45),
    rescaled={"doctor_visits": 1 / 12},  # a month
    silent=("bmi",),
)
LEVERS: Mapping[str, Levers] = {"credit_score": CREDIT, "churn": CHURN, "insurance": INSURANCE}
