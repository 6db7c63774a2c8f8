"""The example data of `insurance`: the yearly costs of a health insurance's members. The data has no time."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import pandas as pd

from stack.example_data.world import Columns, ExampleData, Floats, RandomValues

REGIONS = ("northeast", "northwest", "southeast", "southwest")
CONDITIONS = {  # the cost that each condition adds, USD per year
    "asthma": 900,
    "back pain": 700,
    "diabetes": 2_600,
    "high blood pressure": 1_300,
    "heart disease": 5_200,
}
WEIGHTS: Mapping[str, float] = {"age": 2.2, "smoker": 1.0, "conditions": 1.0}  # the weight of each effect in the cost
SPREAD = 0.22  # standard deviation of the logarithm of a cost around its expectation
MISSING_SHARES = {"bmi": 0.03, "exercise_hours": 0.05, "region": 0.01, "doctor_visits": 0.02}


def generate_insurance(end: datetime, seed: int, customers: int) -> ExampleData:
    """Generate one row per member. The data has no time, so it does not depend on `end`."""
    random = RandomValues(customers, seed=seed)
    features = _features(random)
    expected = expected_cost(features)
    cost = draw_cost(expected, random.normal("cost"))
    numbers = np.arange(1, customers + 1)
    frame = pd.DataFrame(
        {
            "member_id": [f"M{number:06d}" for number in numbers],
            "full_name": [f"Member {number} Example" for number in numbers],
            **random.add_missing_values(features, MISSING_SHARES),
            "yearly_cost": cost,
        }
    )
    return ExampleData(frame, "yearly_cost", (), np.empty((customers, 0)), expected, pd.DataFrame(features))


def _features(random: RandomValues) -> Columns:
    """Draw all features, without missing values.

    The latent variable `frailty` correlates the features. A high value means poor health.
    """
    frailty = random.normal("frailty")
    age = np.floor(18 + 62 * random.uniform("age"))
    bmi = np.round(np.clip(27 + 3.5 * random.normal("bmi") + 1.5 * frailty + 0.03 * (age - 45), 15, 55), 1)
    strain = 1 / (1 + np.exp(2.6 - 0.8 * frailty - 0.035 * (age - 45)))
    condition_probabilities = strain[:, None] * np.array([0.7, 1.4, 0.8, 1.6, 0.5])[None, :]
    return {
        "age": age,
        "sex": random.pick("sex", ("female", "male"), (0.51, 0.49)),
        "region": random.pick("region", REGIONS, (0.25, 0.2, 0.33, 0.22)),
        "bmi": bmi,
        "smoker": random.pick("smoker", ("no", "yes"), (0.8, 0.2)),
        "children": np.floor(np.clip(1.1 + 1.2 * random.normal("children"), 0, 6)),
        "exercise_hours": np.round(np.clip(3 - 0.8 * frailty + 1.8 * random.normal("exercise"), 0, 20), 1),
        "doctor_visits": np.floor(np.clip(np.exp(0.9 + 0.35 * frailty + 0.5 * random.normal("visits")), 0, 40)),
        "conditions": random.pick_list("condition", tuple(CONDITIONS), condition_probabilities),
        "plan": random.pick("plan", ("bronze", "silver", "gold"), (0.4, 0.4, 0.2)),
    }


def draw_cost(expected: Floats, normal: Floats) -> Floats:
    """Turn standard normal values into lognormal costs whose mean is exactly `expected`. All in USD per year."""
    return np.asarray(np.round(expected * np.exp(SPREAD * normal - SPREAD**2 / 2), 2))


def expected_cost(features: Columns, *, weights: Mapping[str, float] = WEIGHTS) -> Floats:
    """The mean cost of each member, USD per year.

    It is a sum of simple effects and two interactions: smoking with weight, and diabetes with heart disease.
    """
    ill = {name: np.array([name in text for text in features["conditions"]]) for name in CONDITIONS}
    age, bmi = features["age"], features["bmi"]
    smoker = features["smoker"] == "yes"
    cost = (
        1_400
        + weights["age"] * (age - 18) ** 1.8
        + 380 * features["children"]
        + 160 * features["doctor_visits"]
        - 90 * np.minimum(features["exercise_hours"], 6)
        + 450 * (features["region"] == "southeast")
        + 600 * (features["plan"] == "gold")
        + weights["conditions"] * sum(price * ill[name] for name, price in CONDITIONS.items())
        + weights["smoker"] * smoker * (5_500 + 900 * np.maximum(bmi - 28, 0))
        + 3_000 * (ill["diabetes"] & ill["heart disease"])
    )
    return np.asarray(np.maximum(cost, 500.0))
