"""The example data of `churn`: subscribers of a video service, some of whom leave. The data has no time."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import pandas as pd

from stack.example_data.world import Columns, ExampleData, Floats, RandomValues

CLASSES = ("stays", "leaves")
FEES = {"Basic": 7.99, "Standard": 11.99, "Premium": 15.99}  # USD per month
CONTRACTS = ("monthly", "yearly", "two_years")
PAYMENTS = ("card", "transfer", "invoice", "voucher")
REGIONS = ("North", "East", "South", "West", "Abroad")
COMPLAINTS = ("billing question", "slow stream", "login problem", "missing series", "wants to cancel")
WEIGHTS: Mapping[str, float] = {  # the weight of each feature in the score, which determines the leave probability
    "contract": 1.5,
    "tenure_months": -0.5,
    "days_since_login": 0.6,
    "hours_a_week": -0.5,
    "support_tickets": 0.35,
}
MISSING_SHARES = {"hours_a_week": 0.03, "days_since_login": 0.02, "region": 0.02, "payment": 0.01}


def generate_churn(end: datetime, seed: int, customers: int) -> ExampleData:
    """Generate one row per customer. The data has no time, so it does not depend on `end`."""
    random = RandomValues(customers, seed=seed)
    features = _features(random)
    leave = leave_probabilities(features)
    label = np.array(CLASSES, dtype=object)[(random.uniform("label") < leave).astype(int)]
    numbers = np.arange(1, customers + 1)
    frame = pd.DataFrame(
        {
            "customer_id": [f"SUB-{number:06d}" for number in numbers],
            "email": [f"subscriber{number}@example.com" for number in numbers],
            **random.add_missing_values(features, MISSING_SHARES),
            "outcome": label,
        }
    )
    probabilities = np.column_stack((1 - leave, leave))
    return ExampleData(frame, "outcome", CLASSES, probabilities, complete=pd.DataFrame(features))


def _features(random: RandomValues) -> Columns:
    """Draw all features, without missing values.

    The latent variable `mood` correlates the features. A high value means a satisfied customer.
    """
    mood = random.normal("mood")
    plan = random.pick("plan", tuple(FEES), (0.45, 0.35, 0.20))
    contract = random.pick("contract", CONTRACTS, (0.58, 0.27, 0.15))
    tenure = np.floor(np.clip(np.exp(2.6 + 0.9 * random.normal("tenure") + 0.25 * mood), 0, 96))
    fee = np.array([FEES[name] for name in plan])
    unhappy = 1 / (1 + np.exp(1.6 + 1.1 * mood))
    complaints = random.pick_list(
        "complaint", COMPLAINTS, unhappy[:, None] * np.array([0.9, 1.0, 0.7, 0.6, 0.5])[None, :]
    )
    tickets = np.floor(np.clip(np.exp(-0.5 - 0.6 * mood + 0.7 * random.normal("tickets")), 0, 20))
    return {
        "region": random.pick("region", REGIONS, (0.28, 0.24, 0.22, 0.18, 0.08)),
        "plan": plan,
        "contract": contract,
        "payment": random.pick("payment", PAYMENTS, (0.5, 0.25, 0.15, 0.1)),
        "tenure_months": tenure,
        "monthly_fee": np.round(fee * np.where(random.uniform("discount") < 0.2, 0.75, 1.0), 2),
        "hours_a_week": np.round(np.clip(np.exp(1.4 + 0.45 * mood + 0.6 * random.normal("hours")), 0, 100), 1),
        "days_since_login": np.floor(np.clip(np.exp(1.3 - 0.7 * mood + 0.8 * random.normal("login")), 0, 180)),
        "profiles": 1 + np.floor(np.clip(1.2 + 1.1 * random.normal("profiles"), 0, 5)),
        "support_tickets": tickets,
        "late_payments": np.floor(np.clip(np.exp(-1.2 + 0.9 * random.normal("late")), 0, 12)),
        "complaints": np.where(tickets > 0, complaints, "none"),
    }


def leave_probabilities(features: Columns, *, weights: Mapping[str, float] = WEIGHTS) -> Floats:
    """The probability that each customer leaves: a logit of simple effects and two interactions. Its mean is 0.25."""
    monthly = features["contract"] == "monthly"
    cancels = np.array(["cancel" in text for text in features["complaints"]])
    tenure, tickets = features["tenure_months"], features["support_tickets"]
    score = (
        -2.6
        + weights["contract"] * monthly
        - 0.8 * (features["contract"] == "two_years")
        + weights["tenure_months"] * (np.log1p(tenure) - 2.6)
        + weights["days_since_login"] * (np.log1p(features["days_since_login"]) - 1.4)
        + weights["hours_a_week"] * (np.log1p(features["hours_a_week"]) - 1.6)
        + weights["support_tickets"] * tickets
        + 0.25 * features["late_payments"]
        + 0.5 * (features["payment"] == "invoice")
        + 1.8 * cancels
        + 0.8 * (monthly & (features["plan"] == "Premium"))
        + 0.9 * ((tenure < 6) & (tickets >= 2))
    )
    return np.asarray(1 / (1 + np.exp(-1.1 * score)))
