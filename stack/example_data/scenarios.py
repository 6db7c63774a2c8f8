"""Scenarios: moderate changes of the example data, to see how the platform reacts.

    none       nothing changes
    covariate  some features rise, for example incomes; the rule that draws labels stays the same
    concept    the rule changes; the features stay the same
    shift      covariate and concept together
    prior      one class becomes more frequent; within each class the distribution of features stays the same
    broken     a source sends one column in a wrong unit and another column empty; the labels stay the same

The people are generated with another seed than the example data, so none of them is in the loaded example.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from stack.example_data import churn, insurance
from stack.example_data.credit_score import CLASSES, CREDIT_WEIGHTS, credit_probabilities
from stack.example_data.scenario_names import Scenario
from stack.example_data.world import ExampleData, to_arrays
from stack.example_data.worlds import GENERATORS
from utils.errors import NotFound

BLOCK = 2_000  # the number of people who are generated together; only the newest row of each person is used
# (features without missing values, random generator) → one label per row
Rule = Callable[[pd.DataFrame, np.random.Generator], Any]


@dataclass(frozen=True, slots=True)
class ScenarioEffects:
    """How the scenarios change the example data of one model.

    rule: draws the labels.
    changed_rule: draws the labels under concept and shift.
    rising: column → factor of its values under covariate and shift.
    kept_share: labels → probability that prior keeps a row, 0 to 1, one per label.
    rescaled: column → factor of its values under broken.
    emptied: the columns without values under broken.
    """

    rule: Rule
    changed_rule: Rule
    rising: Mapping[str, float]
    kept_share: Callable[[pd.Series], Any]
    rescaled: Mapping[str, float]
    emptied: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScenarioPeople:
    """Generated people, one row per person.

    features: the values that the source sends. None and NaN are missing values.
    labels: the true labels.
    """

    features: pd.DataFrame
    labels: pd.Series


def draw_people(model: str, *, scenario: Scenario, end: datetime, rows: int, seed: int) -> ScenarioPeople:
    """Draw `rows` people of `model` under `scenario`. Their rows are from the days before `end` (UTC).

    The same arguments return the same people. A smaller `rows` returns the first of them. All scenarios except `prior`
    return the same people.

    Raises: NotFound if the model has no scenarios.
    """
    if model not in EFFECTS:
        raise NotFound(what=f"example world with scenarios for {model}", hint=f"there is one for {', '.join(EFFECTS)}")
    blocks: list[ScenarioPeople] = []
    for block in _generate_blocks(model, scenario=scenario, end=end, seed=seed):
        blocks.append(block)
        if sum(len(block.labels) for block in blocks) >= rows:
            break
    features = pd.concat([block.features for block in blocks], ignore_index=True).head(rows)
    return ScenarioPeople(features, pd.concat([block.labels for block in blocks], ignore_index=True).head(rows))


def _generate_blocks(model: str, *, scenario: Scenario, end: datetime, seed: int) -> Iterator[ScenarioPeople]:
    number = 0
    while True:
        sequence = np.random.SeedSequence([seed, number])
        example_data = GENERATORS[model](end, int(sequence.generate_state(1)[0]), BLOCK)
        yield _apply_scenario(example_data, EFFECTS[model], scenario, np.random.default_rng(sequence))
        number += 1


def _apply_scenario(
    example_data: ExampleData, effects: ScenarioEffects, scenario: Scenario, generator: np.random.Generator
) -> ScenarioPeople:
    # The first column is the entity. The rows are in the order of event time.
    newest_rows = generator.permutation(
        np.flatnonzero(~example_data.frame.duplicated(example_data.frame.columns[0], keep="last"))
    )
    complete = example_data.complete.iloc[newest_rows].reset_index(drop=True)
    features = example_data.frame.loc[newest_rows, list(complete.columns)].reset_index(drop=True)
    if scenario in {Scenario.COVARIATE, Scenario.SHIFT}:
        complete, features = (_multiply(frame, effects.rising) for frame in (complete, features))
    rule = effects.changed_rule if scenario in {Scenario.CONCEPT, Scenario.SHIFT} else effects.rule
    labels = pd.Series(rule(complete, generator), name=example_data.label)
    if scenario is Scenario.PRIOR:
        is_kept = generator.random(len(labels)) < effects.kept_share(labels)
        features, labels = features[is_kept], labels[is_kept]
    if scenario is Scenario.BROKEN:
        features = _multiply(features, effects.rescaled).assign(**dict.fromkeys(effects.emptied, np.nan))
    return ScenarioPeople(features, labels)


def _multiply(frame: pd.DataFrame, factors: Mapping[str, float]) -> pd.DataFrame:
    return frame.assign(**{name: frame[name] * factor for name, factor in factors.items()})


def _credit_rule(weights: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, generator: np.random.Generator) -> Any:
        bounds = credit_probabilities(complete, weights=weights).cumsum(axis=1)[:, :-1]
        is_above = generator.random(len(complete))[:, None] > bounds
        return np.array(CLASSES, dtype=object)[is_above.sum(axis=1)]

    return draw


def _churn_rule(weights: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, generator: np.random.Generator) -> Any:
        leaves = generator.random(len(complete)) < churn.leave_probabilities(to_arrays(complete), weights=weights)
        return np.array(churn.CLASSES, dtype=object)[leaves.astype(int)]

    return draw


def _insurance_rule(weights: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, generator: np.random.Generator) -> Any:
        expected = insurance.expected_cost(to_arrays(complete), weights=weights)
        return insurance.draw_cost(expected, generator.standard_normal(len(complete)))

    return draw


def _share_by_class(shares: Mapping[str, float]) -> Callable[[pd.Series], Any]:
    return lambda labels: labels.map(shares).to_numpy(dtype=float)


CREDIT_EFFECTS = ScenarioEffects(
    rule=_credit_rule(CREDIT_WEIGHTS),
    # Debt and inquiries count several times as much. Payments, interest and history no longer count.
    changed_rule=_credit_rule(
        {**dict.fromkeys(CREDIT_WEIGHTS, 0.0), "outstanding_debt": 1.8, "num_credit_inquiries": 1.4},
    ),
    # The factor is half a standard deviation of the logarithm of incomes.
    rising=dict.fromkeys(("annual_income", "monthly_inhand_salary", "amount_invested_monthly", "monthly_balance"), 1.3),
    kept_share=_share_by_class({"Poor": 1.0, "Standard": 0.45, "Good": 0.45}),
    rescaled={"annual_income": 1 / 1000},  # in thousands of USD
    emptied=("monthly_inhand_salary",),
)
CHURN_EFFECTS = ScenarioEffects(
    rule=_churn_rule(churn.WEIGHTS),
    # Contracts count less, support tickets count more, and subscribers who watch much now leave more often.
    changed_rule=_churn_rule({**churn.WEIGHTS, "contract": 0.9, "support_tickets": 1.1, "hours_a_week": 0.5}),
    rising={"hours_a_week": 1.4},  # half a standard deviation of the logarithm
    kept_share=_share_by_class({"leaves": 1.0, "stays": 0.45}),
    rescaled={"days_since_login": 1 / 30},  # in months
    emptied=("hours_a_week",),
)
EXPENSIVE = 10_000  # USD per year
INSURANCE_EFFECTS = ScenarioEffects(
    rule=_insurance_rule(insurance.WEIGHTS),
    # Treatment of conditions costs more. Age and smoking count less.
    changed_rule=_insurance_rule({"age": 2.0, "smoker": 0.8, "conditions": 1.8}),
    rising={"bmi": 1.075},  # half a standard deviation
    kept_share=lambda labels: np.where(labels > EXPENSIVE, 1.0, 0.45),
    rescaled={"doctor_visits": 1 / 12},  # per month
    emptied=("bmi",),
)
EFFECTS: Mapping[str, ScenarioEffects] = {
    "credit_score": CREDIT_EFFECTS,
    "churn": CHURN_EFFECTS,
    "insurance": INSURANCE_EFFECTS,
}
