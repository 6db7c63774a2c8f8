"""The example world of `insurance`: the yearly costs of a health insurance's members. It has no time."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import pandas as pd

from stack.example_data.world import Columns, Floats, People, World

REGIONS = ("northeast", "northwest", "southeast", "southwest")
CONDITIONS = {  # the cost that each condition adds, USD a year
    "asthma": 900,
    "back pain": 700,
    "diabetes": 2_600,
    "high blood pressure": 1_300,
    "heart disease": 5_200,
}
RULE: Mapping[str, float] = {"age": 2.2, "smoker": 1.0, "conditions": 1.0}  # the weight of each effect in the cost
SPREAD = 0.22  # standard deviation of the logarithm of a cost around its expectation
MISSING_SHARES = {"bmi": 0.03, "exercise_hours": 0.05, "region": 0.01, "doctor_visits": 0.02}


def insurance(end: datetime, seed: int, customers: int) -> World:
    """One row for each member. The world has no time, so it does not depend on `end`."""
    people = People(customers, seed=seed)
    features = _features(people)
    expected = expected_cost(features)
    cost = cost_around(expected, people.normal("cost"))
    number = np.arange(1, customers + 1)
    frame = pd.DataFrame(
        {
            "member_id": [f"M{n:06d}" for n in number],
            "full_name": [f"Member {n} Example" for n in number],
            **people.gaps(features, MISSING_SHARES),
            "yearly_cost": cost,
        }
    )
    return World(frame, "yearly_cost", (), np.empty((customers, 0)), expected, pd.DataFrame(features))


def _features(people: People) -> Columns:
    """All features, without missing values. The latent `frailty` correlates them: high means ill."""
    frailty = people.normal("frailty")
    age = np.floor(18 + 62 * people.uniform("age"))
    bmi = np.round(np.clip(27 + 3.5 * people.normal("bmi") + 1.5 * frailty + 0.03 * (age - 45), 15, 55), 1)
    strain = 1 / (1 + np.exp(2.6 - 0.8 * frailty - 0.035 * (age - 45)))
    chances = strain[:, None] * np.array([0.7, 1.4, 0.8, 1.6, 0.5])[None, :]
    return {
        "age": age,
        "sex": people.pick("sex", ("female", "male"), (0.51, 0.49)),
        "region": people.pick("region", REGIONS, (0.25, 0.2, 0.33, 0.22)),
        "bmi": bmi,
        "smoker": people.pick("smoker", ("no", "yes"), (0.8, 0.2)),
        "children": np.floor(np.clip(1.1 + 1.2 * people.normal("children"), 0, 6)),
        "exercise_hours": np.round(np.clip(3 - 0.8 * frailty + 1.8 * people.normal("exercise"), 0, 20), 1),
        "doctor_visits": np.floor(np.clip(np.exp(0.9 + 0.35 * frailty + 0.5 * people.normal("visits")), 0, 40)),
        "conditions": people.listed("condition", tuple(CONDITIONS), chances),
        "plan": people.pick("plan", ("bronze", "silver", "gold"), (0.4, 0.4, 0.2)),
    }


def cost_around(expected: Floats, luck: Floats) -> Floats:
    """A cost for each standard normal value of `luck`. A lognormal with this shift has exactly the mean `expected`."""
    return np.asarray(np.round(expected * np.exp(SPREAD * luck - SPREAD**2 / 2), 2))


def expected_cost(features: Columns, *, rule: Mapping[str, float] = RULE) -> Floats:
    """The mean cost, USD a year: additive effects, an interaction of smoking and weight, and one of heart and sugar."""
    ill = {name: np.array([name in text for text in features["conditions"]]) for name in CONDITIONS}
    age, bmi = features["age"], features["bmi"]
    smoker = features["smoker"] == "yes"
    cost = (
        1_400
        + rule["age"] * (age - 18) ** 1.8
        + 380 * features["children"]
        + 160 * features["doctor_visits"]
        - 90 * np.minimum(features["exercise_hours"], 6)
        + 450 * (features["region"] == "southeast")
        + 600 * (features["plan"] == "gold")
        + rule["conditions"] * sum(price * ill[name] for name, price in CONDITIONS.items())
        + rule["smoker"] * smoker * (5_500 + 900 * np.maximum(bmi - 28, 0))
        + 3_000 * (ill["diabetes"] & ill["heart disease"])
    )
    return np.asarray(np.maximum(cost, 500.0))
