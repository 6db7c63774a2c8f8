"""Scenarios: the example worlds changed in one way at a time, moderately, for seeing what the platform makes of it.

    none       nothing
    covariate  incomes rise; who they are that ask changes, the rule that makes labels does not
    concept    the rule changes; those who ask look the same as ever
    prior      one class becomes commoner; within each class everybody looks the same as ever
    broken     a source sends one column in thousands and another one empty; the truth, and the labels with it, stay

People are drawn anew from the world of their model, so none of them is in the loaded example, and each is drawn once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from db.sample import CLASSES, CREDIT_RULE, WORLDS, credit_probabilities
from db.scenario_names import Scenario
from db.world import Floats, World
from utils.errors import NotFound

BLOCK = 2_000  # people whose whole history is made at a time; only the newest row of each is kept
Labels = NDArray[np.object_]
Rule = Callable[[pd.DataFrame, Floats], Labels]  # complete features, one uniform number a row → a label a row


@dataclass(frozen=True, slots=True)
class Levers:
    """What scenarios move in one world. `rising`: columns that covariate multiplies, by the factor.

    `share`: how many of a class prior lets through, 1 for all. `thousands`, `silent`: columns of the broken source.
    """

    rule: Rule
    changed_rule: Rule
    rising: Mapping[str, float]
    share: Mapping[str, float]
    thousands: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Those who ask, in their order. `features`: as the source sends them, None or NaN missing. `labels`: the truth."""

    features: pd.DataFrame
    labels: pd.Series


def traffic(model: str, *, scenario: Scenario, end: datetime, rows: int, seed: int) -> Traffic:
    """`rows` people of the world of `model` on the days before `end` (UTC), under `scenario`.

    The same arguments give the same people; fewer rows give the first of them. Under `none`, `covariate`, `concept` and
    `broken` they are the same people.

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
    if scenario is Scenario.COVARIATE:
        complete, sent = (_risen(frame, levers.rising) for frame in (complete, sent))
    rule = levers.changed_rule if scenario is Scenario.CONCEPT else levers.rule
    luck, passes = random.random(len(newest)), random.random(len(newest))
    labels = pd.Series(rule(complete, luck), name=world.label)
    if scenario is Scenario.PRIOR:
        kept = passes < labels.map(levers.share).to_numpy(dtype=float)
        sent, labels = sent[kept], labels[kept]
    if scenario is Scenario.BROKEN:
        thousands = {name: sent[name] / 1000 for name in levers.thousands}
        sent = sent.assign(**thousands, **dict.fromkeys(levers.silent, np.nan))
    return Traffic(sent, labels)


def _risen(frame: pd.DataFrame, rising: Mapping[str, float]) -> pd.DataFrame:
    return frame.assign(**{name: (frame[name] * factor).round(2) for name, factor in rising.items()})


def _credit_rule(rule: Mapping[str, float]) -> Rule:
    def draw(complete: pd.DataFrame, luck: Floats) -> Labels:
        reached = credit_probabilities(complete, rule=rule).cumsum(axis=1)[:, :-1]
        return np.array(CLASSES, dtype=object)[(luck[:, None] > reached).sum(axis=1)]

    return draw


CREDIT = Levers(
    rule=_credit_rule(CREDIT_RULE),
    # Debt and inquiries count several times as much; payments, interest and the length of the history no more.
    changed_rule=_credit_rule(
        {**dict.fromkeys(CREDIT_RULE, 0.0), "outstanding_debt": 1.8, "num_credit_inquiries": 1.4},
    ),
    # Half a standard deviation of the logarithm of incomes.
    rising=dict.fromkeys(("annual_income", "monthly_inhand_salary", "amount_invested_monthly", "monthly_balance"), 1.3),
    share={"Poor": 1.0, "Standard": 0.45, "Good": 0.45},
    thousands=("annual_income",),
    silent=("monthly_inhand_salary",),
)
LEVERS: Mapping[str, Levers] = {"credit_score": CREDIT}
