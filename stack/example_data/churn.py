"""The example world of `churn`: subscribers of a video service, of which some leave. It has no time."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import pandas as pd

from stack.example_data.world import Columns, Floats, People, World

CLASSES = ("stays", "leaves")
FEES = {"Basic": 7.99, "Standard": 11.99, "Premium": 15.99}  # USD a month
CONTRACTS = ("monthly", "yearly", "two_years")
PAYMENTS = ("card", "transfer", "invoice", "voucher")
REGIONS = ("North", "East", "South", "West", "Abroad")
COMPLAINTS = ("billing question", "slow stream", "login problem", "missing series", "wants to cancel")
RULE: Mapping[str, float] = {  # what each feature adds to the score, from which the chance to leave follows
    "contract": 1.5,
    "tenure_months": -0.5,
    "days_since_login": 0.6,
    "hours_a_week": -0.5,
    "support_tickets": 0.35,
}
MISSING_SHARES = {"hours_a_week": 0.03, "days_since_login": 0.02, "region": 0.02, "payment": 0.01}


def churn(end: datetime, seed: int, customers: int) -> World:
    """One row for each customer. The world has no time, so it does not depend on `end`."""
    people = People(customers, seed=seed)
    features = _features(people)
    leaves = chance_to_leave(features)
    label = np.array(CLASSES, dtype=object)[(people.uniform("label") < leaves).astype(int)]
    number = np.arange(1, customers + 1)
    frame = pd.DataFrame(
        {
            "customer_id": [f"SUB-{n:06d}" for n in number],
            "email": [f"subscriber{n}@example.com" for n in number],
            **people.gaps(features, MISSING_SHARES),
            "outcome": label,
        }
    )
    return World(frame, "outcome", CLASSES, np.column_stack((1 - leaves, leaves)), complete=pd.DataFrame(features))


def _features(people: People) -> Columns:
    """All features, without missing values. The latent `mood` correlates them: high means a content customer."""
    mood = people.normal("mood")
    plan = people.pick("plan", tuple(FEES), (0.45, 0.35, 0.20))
    contract = people.pick("contract", CONTRACTS, (0.58, 0.27, 0.15))
    tenure = np.floor(np.clip(np.exp(2.6 + 0.9 * people.normal("tenure") + 0.25 * mood), 0, 96))
    fee = np.array([FEES[name] for name in plan])
    unhappy = 1 / (1 + np.exp(1.6 + 1.1 * mood))
    complaints = people.listed("complaint", COMPLAINTS, unhappy[:, None] * np.array([0.9, 1.0, 0.7, 0.6, 0.5])[None, :])
    tickets = np.floor(np.clip(np.exp(-0.5 - 0.6 * mood + 0.7 * people.normal("tickets")), 0, 20))
    return {
        "region": people.pick("region", REGIONS, (0.28, 0.24, 0.22, 0.18, 0.08)),
        "plan": plan,
        "contract": contract,
        "payment": people.pick("payment", PAYMENTS, (0.5, 0.25, 0.15, 0.1)),
        "tenure_months": tenure,
        "monthly_fee": np.round(fee * np.where(people.uniform("discount") < 0.2, 0.75, 1.0), 2),
        "hours_a_week": np.round(np.clip(np.exp(1.4 + 0.45 * mood + 0.6 * people.normal("hours")), 0, 100), 1),
        "days_since_login": np.floor(np.clip(np.exp(1.3 - 0.7 * mood + 0.8 * people.normal("login")), 0, 180)),
        "profiles": 1 + np.floor(np.clip(1.2 + 1.1 * people.normal("profiles"), 0, 5)),
        "support_tickets": tickets,
        "late_payments": np.floor(np.clip(np.exp(-1.2 + 0.9 * people.normal("late")), 0, 12)),
        "complaints": np.where(tickets > 0, complaints, "none"),
    }


def chance_to_leave(features: Columns, *, rule: Mapping[str, float] = RULE) -> Floats:
    """The chance of each customer to leave: a logit of simple effects and two interactions. Its mean is about 0.25."""
    monthly = features["contract"] == "monthly"
    cancels = np.array(["cancel" in text for text in features["complaints"]])
    tenure, tickets = features["tenure_months"], features["support_tickets"]
    score = (
        -2.6
        + rule["contract"] * monthly
        - 0.8 * (features["contract"] == "two_years")
        + rule["tenure_months"] * (np.log1p(tenure) - 2.6)
        + rule["days_since_login"] * (np.log1p(features["days_since_login"]) - 1.4)
        + rule["hours_a_week"] * (np.log1p(features["hours_a_week"]) - 1.6)
        + rule["support_tickets"] * tickets
        + 0.25 * features["late_payments"]
        + 0.5 * (features["payment"] == "invoice")
        + 1.8 * cancels
        + 0.8 * (monthly & (features["plan"] == "Premium"))
        + 0.9 * ((tenure < 6) & (tickets >= 2))
    )
    return np.asarray(1 / (1 + np.exp(-1.1 * score)))
