"""Scenarios: moderate changes of the example worlds, to see how the platform reacts.

    none       nothing changes
    covariate  some values rise, for example incomes; the rule that makes labels stays
    concept    the rule changes; the distribution of features stays
    shift      covariate and concept at once
    prior      one class becomes more frequent; within each class the distribution of features stays
    broken     a source sends one column in another unit and one column empty; the true values and the labels stay

People are drawn anew from the world of the model. They are not in the loaded example, and each is drawn once.
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

BLOCK = 2_000  # people that are generated at once, with their history; only the newest row of each is used
# (features without missing values, random generator) → a label for each row
Rule = Callable[[pd.DataFrame, np.random.Generator], Any]


@dataclass(frozen=True, slots=True)
class Levers:
    """How the scenarios change one world.

    rule: the rule that makes labels.
    changed_rule: the rule under concept and shift.
    rising: column → factor under covariate and shift.
    share: labels → share of the rows that prior keeps, 0 to 1.
    rescaled: column → factor of the wrong unit under broken.
    silent: the empty columns under broken.
    """

    rule: Rule
    changed_rule: Rule
    rising: Mapping[str, float]
    share: Callable[[pd.Series], Any]
    rescaled: Mapping[str, float]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """The people of the requests, in order.

    features: the values that the source sends. None and NaN are missing values.
    labels: the true labels.
    """

    features: pd.DataFrame
    labels: pd.Series


def traffic(model: str, *, scenario: Scenario, end: datetime, rows: int, seed: int) -> Traffic:
    """`rows` people of the world of `model` on the days before `end` (UTC), under `scenario`.

    The same arguments give the same people. Fewer rows give the first of these people. All scenarios except `prior`
    have the same people.

    Raises: NotFound if the model has no example world, or the world has no levers.
    """
    if model not in LEVERS:
        raise NotFound(what=f"example world with scenarios for {model}", hint=f"there is one for {', '.join(LEVERS)}")
    blocks: list[Traffic] = []
    for block in _blocks(model, scenario=scenario, end=end, seed=seed):
        blocks.append(block)
        if sum(len(block.labels) for block in blocks) >= rows:
            break
    features = pd.concat([block.features for block in blocks], ignore_index=True).head(rows)
    return Traffic(features, pd.concat([block.labels for block in blocks], ignore_index=True).head(rows))


def _blocks(model: str, *, scenario: Scenario, end: datetime, seed: int) -> Iterator[Traffic]:
    number = 0
    while True:
        sequence = np.random.SeedSequence([seed, number])
        world = WORLDS[model](end, int(sequence.generate_state(1)[0]), BLOCK)
        yield _changed(world, LEVERS[model], scenario, np.random.default_rng(sequence))
        number += 1


def _changed(world: World, levers: Levers, scenario: Scenario, random: np.random.Generator) -> Traffic:
    # The first column of a world is the entity. The rows are in the order of event time.
    newest_rows = random.permutation(np.flatnonzero(~world.frame.duplicated(world.frame.columns[0], keep="last")))
    complete = world.complete.iloc[newest_rows].reset_index(drop=True)
    features = world.frame.loc[newest_rows, list(complete.columns)].reset_index(drop=True)
    if scenario in {Scenario.COVARIATE, Scenario.SHIFT}:
        complete, features = (_multiplied(frame, levers.rising) for frame in (complete, features))
    rule = levers.changed_rule if scenario in {Scenario.CONCEPT, Scenario.SHIFT} else levers.rule
    labels = pd.Series(rule(complete, random), name=world.label)
    if scenario is Scenario.PRIOR:
        is_kept = random.random(len(labels)) < levers.share(labels)
        features, labels = features[is_kept], labels[is_kept]
    if scenario is Scenario.BROKEN:
        features = _multiplied(features, levers.rescaled).assign(**dict.fromkeys(levers.silent, np.nan))
    return Traffic(features, labels)


def _multiplied(frame: pd.DataFrame, factors: Mapping[str, float]) -> pd.DataFrame:
    return frame.assign(**{name: frame[name] * factor for name, factor in factors.items()})


def _credit_rule(rule: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, random: np.random.Generator) -> Any:
        bounds = credit_probabilities(complete, rule=rule).cumsum(axis=1)[:, :-1]
        is_above = random.random(len(complete))[:, None] > bounds
        return np.array(CLASSES, dtype=object)[is_above.sum(axis=1)]

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
    # The weights of debt and inquiries rise to a multiple. Payments, interest and history no longer count.
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
    # Contracts bind less, support tickets weigh more, and subscribers who watch much now leave sooner.
    changed_rule=_churn_rule({**churn.RULE, "contract": 0.9, "support_tickets": 1.1, "hours_a_week": 0.5}),
    rising={"hours_a_week": 1.4},  # half a standard deviation of the logarithm
    share=_by_class({"leaves": 1.0, "stays": 0.45}),
    rescaled={"days_since_login": 1 / 30},  # months
    silent=("hours_a_week",),
)
EXPENSIVE = 10_000  # USD a year
INSURANCE = Levers(
    rule=_insurance_rule(insurance.RULE),
    # Treatment costs more. Age and smoking matter less.
    changed_rule=_insurance_rule({"age": 2.0, "smoker": 0.8, "conditions": 1.8}),
    rising={"bmi": 1.075},  # half a standard deviation
    share=lambda labels: np.where(labels > EXPENSIVE, 1.0, 0.45),
    rescaled={"doctor_visits": 1 / 12},  # a month
    silent=("bmi",),
)
LEVERS: Mapping[str, Levers] = {"credit_score": CREDIT, "churn": CHURN, "insurance": INSURANCE}
