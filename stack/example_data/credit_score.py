"""The example data of `credit_score`: generated data in the format of a user's file, to try Evergreen without data.

A row depends only on the seed, the entity and the day. Data that is generated on a later day has the same rows and
newer ones, so a second load adds only the new rows. Labels are drawn from probabilities, which a fixed formula
computes from the features. So even the best model can't predict every label.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.example_data.world import ExampleData, Floats

EXAMPLE_SEED, CUSTOMERS = 7, 6000
STATEMENTS, PERIOD = 13, 30  # a statement every 30 days, for 13 periods
EPOCH = 20_000  # the day on which slow trends are zero, in days since 1970
MEMORY = 12  # the number of periods whose random values are averaged into a slowly changing value

OCCUPATIONS = {  # median yearly income, USD
    "Accountant": 46_000, "Architect": 62_000, "Developer": 74_000, "Doctor": 98_000, "Engineer": 70_000,
    "Entrepreneur": 52_000, "Journalist": 38_000, "Lawyer": 84_000, "Manager": 66_000, "Mechanic": 34_000,
    "Media_Manager": 48_000, "Musician": 26_000, "Scientist": 58_000, "Teacher": 40_000, "Writer": 30_000,
}  # fmt: skip
LOANS = (
    "Auto Loan",
    "Credit-Builder Loan",
    "Debt Consolidation Loan",
    "Home Equity Loan",
    "Mortgage Loan",
    "Payday Loan",
    "Personal Loan",
    "Student Loan",
)
MOST_LOANS = 9
MIXES = np.array(["Good", "Standard", "Bad"], dtype=object)
MINIMUM_PAID = np.array(["No", "NM", "Yes"], dtype=object)
CLASSES = ("Poor", "Standard", "Good")
FIRST_NAMES = ("Ada", "Bo", "Cleo", "Dov", "Eve", "Finn", "Gia", "Hugo", "Ines", "Juno")
MISSING_SHARES = {  # share of the statements in which the value is missing
    "occupation": 0.02,
    "monthly_inhand_salary": 0.03,
    "num_of_delayed_payment": 0.02,
    "changed_credit_limit": 0.02,
    "num_credit_inquiries": 0.01,
    "credit_mix": 0.02,
    "credit_history_age": 0.02,
    "amount_invested_monthly": 0.03,
    "monthly_balance": 0.02,
    "type_of_loan": 0.01,
}


CREDIT_WEIGHTS: Mapping[str, float] = {  # what each feature adds to the risk if it rises by about a standard deviation
    "delay_from_due_date": 0.55,
    "num_of_delayed_payment": 0.45,
    "interest_rate": 0.50,
    "outstanding_debt": 0.45,
    "num_credit_inquiries": 0.35,
    "credit_history_age": -0.40,
}


def generate_credit_score(end: datetime, seed: int = EXAMPLE_SEED, customers: int = CUSTOMERS) -> ExampleData:
    """Generate 13 statements per customer, one every 30 days. 1–3% of the values of some columns are missing."""
    statements = _Statements(end, seed, customers)
    complete = _credit_features(statements)
    probabilities = credit_probabilities(complete)
    class_indices = (statements.uniform("label")[:, None] > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
    is_missing = {name: statements.uniform(f"missing {name}") < share for name, share in MISSING_SHARES.items()}
    numbers = statements.customer + 1
    names = np.array([f"{FIRST_NAMES[n % len(FIRST_NAMES)]} Example" for n in range(customers)], dtype=object)
    frame = pd.DataFrame(
        {
            "customer_id": _format_numbers("CUS_{:05d}", numbers),
            "date": statements.day.astype("datetime64[D]").astype("datetime64[us]"),
            "name": names[statements.customer],
            "ssn": _format_numbers("000-00-{:04d}", numbers % 10_000),  # numbers that begin with 000 are never issued
            **{
                name: values.mask(is_missing[name]) if name in is_missing else values
                for name, values in complete.items()
            },
            "credit_score": np.array(CLASSES, dtype=object)[class_indices],
        }
    )
    order = np.lexsort((statements.customer, statements.day))
    sorted_frame, sorted_complete = (
        table.iloc[order].reset_index(drop=True) for table in (frame, pd.DataFrame(complete))
    )
    return ExampleData(sorted_frame, "credit_score", CLASSES, probabilities[order], complete=sorted_complete)


class _Statements:
    """The customer and the day of every statement, and random values that depend only on customer and period.

    All arrays have one value per statement.

    customer: the number of the customer, from 0.
    period: the number of the 30-day period since 1970.
    day: days since 1970.
    """

    def __init__(self, end: datetime, seed: int, customers: int) -> None:
        self._seed, self._customers = seed, customers
        phase = self._customer_random("phase").integers(0, PERIOD, customers)
        last_period = ((end - datetime(1970, 1, 1)).days - phase) // PERIOD
        self.customer = np.tile(np.arange(customers), STATEMENTS)
        self.period = (last_period[None, :] - np.arange(STATEMENTS)[:, None]).ravel()
        self.day = self.period * PERIOD + phase[self.customer]
        self._first_period = int(self.period.min()) - MEMORY

    def customer_normal(self, name: str) -> Floats:
        """A standard normal value per customer, the same in all statements of the customer."""
        return self._customer_random(name).standard_normal(self._customers)[self.customer]

    def customer_choice(self, name: str, options: int) -> NDArray[np.int64]:
        return self._customer_random(name).integers(0, options, self._customers)[self.customer]

    def normal(self, name: str) -> Floats:
        """A standard normal value per statement, independent of all other values."""
        return self._by_period(name, lambda random: random.standard_normal(self._customers))[self._indices]

    def uniform(self, name: str) -> Floats:
        return self._by_period(name, lambda random: random.random(self._customers))[self._indices]

    def slow_normal(self, name: str) -> Floats:
        """A standard normal value per statement that changes slowly: consecutive values correlate by 0.87."""
        shocks = self._by_period(name, lambda random: random.standard_normal(self._customers))
        weights = 0.87 ** np.arange(MEMORY)
        weights /= np.sqrt((weights**2).sum())
        weighted_sums = sum(weight * np.roll(shocks, lag, axis=0) for lag, weight in enumerate(weights))
        return np.asarray(weighted_sums)[self._indices]

    @property
    def _indices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.period - self._first_period, self.customer

    def _customer_random(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, *name.encode()])

    def _by_period(self, name: str, draw: Callable[[np.random.Generator], Floats]) -> Floats:
        """Random values, periods × customers. Each period has its own seed, so the values do not depend on `end`."""
        periods = range(self._first_period, int(self.period.max()) + 1)
        return np.stack([draw(np.random.default_rng([self._seed, period, *name.encode()])) for period in periods])


def _credit_features(rows: _Statements) -> dict[str, pd.Series]:
    """Draw all features, without missing values.

    The latent variable `strain` correlates the features. A high value means a bad financial situation.
    """
    strain = 0.75 * rows.customer_normal("character") + 0.65 * rows.slow_normal("circumstances")
    job = rows.customer_choice("occupation", len(OCCUPATIONS))
    age = 18 + np.floor(22 + 12 * np.clip(rows.customer_normal("age"), -1.8, 2.6) + (rows.day - EPOCH) / 365.25)
    median = np.array(list(OCCUPATIONS.values()), dtype=np.float64)[job]
    talent, pay = rows.customer_normal("talent"), rows.slow_normal("pay")
    income = median * np.exp(0.35 * talent - 0.12 * strain + 0.006 * (age - 40) + 0.03 * pay)
    salary = income / 12 * np.clip(0.82 + 0.04 * rows.normal("salary"), 0.6, 0.95)

    def draw_count(name: str, center: float, slope: float, spread: float, maximum: int) -> Floats:
        values = center + slope * strain + spread * (0.8 * rows.customer_normal(name) + 0.6 * rows.slow_normal(name))
        return np.clip(np.rint(values), 0, maximum) + 0.0  # not -0.0

    loans = draw_count("loans", 3.2, 1.7, 1.2, MOST_LOANS)
    debt = 1150 * np.exp(0.55 * strain + 0.4 * rows.customer_normal("debt") + 0.25 * rows.slow_normal("debt"))
    emi = salary * np.clip(0.012 + 0.014 * loans * np.exp(0.3 * rows.customer_normal("emi")), 0, 0.45)
    invested = salary * np.clip(0.06 * np.exp(0.5 * rows.normal("invested") - 0.25 * strain), 0, 0.3)
    months = 215 - 62 * strain + 55 * rows.customer_normal("history") + (rows.day - EPOCH) / 30.4
    history = np.clip(np.rint(months), 3, 500)
    delay = 20 + 9 * strain + 5 * rows.slow_normal("delay") + 2 * rows.normal("delay")
    minimum = np.digitize(1.1 * strain + rows.slow_normal("minimum"), [-0.25, 0.05])
    columns: dict[str, NDArray[np.generic]] = {
        "age": np.clip(age, 18, 100),
        "occupation": np.array(list(OCCUPATIONS), dtype=object)[job],
        "annual_income": np.round(income, 2),
        "monthly_inhand_salary": np.round(salary, 2),
        "num_bank_accounts": draw_count("accounts", 5.0, 1.4, 1.3, 12),
        "num_credit_card": draw_count("cards", 5.3, 1.0, 1.3, 12),
        "interest_rate": np.clip(np.rint(14 + 5.2 * strain + 3.5 * rows.customer_normal("rate")), 1, 36),
        "num_of_loan": loans,
        "type_of_loan": _loan_names(rows, loans.astype(int)),
        "delay_from_due_date": np.clip(np.rint(delay), -5, 70),
        "num_of_delayed_payment": np.clip(np.rint(13 + 4.2 * strain + 3 * rows.slow_normal("delayed")), 0, 30),
        "changed_credit_limit": np.round(10 + 3 * strain + 5 * rows.normal("limit"), 2),
        "num_credit_inquiries": draw_count("inquiries", 5.6, 2.2, 1.8, 20),
        "credit_mix": MIXES[np.digitize(0.9 * strain + 0.55 * rows.customer_normal("mix"), [-0.35, 0.75])],
        "outstanding_debt": np.round(debt, 2),
        "credit_utilization_ratio": np.round(np.clip(32 + 2.5 * strain + 5 * rows.normal("utilization"), 5, 65), 3),
        "credit_history_age": history,
        "payment_of_min_amount": MINIMUM_PAID[minimum],
        "total_emi_per_month": np.round(emi, 2),
        "amount_invested_monthly": np.round(invested, 2),
        "payment_behaviour": _payment_behaviour(rows, strain, income),
        "monthly_balance": np.round(salary * 0.11 - 0.3 * emi - 0.2 * invested + 40 * rows.normal("balance"), 2),
    }
    return {name: pd.Series(values) for name, values in columns.items()}


def credit_probabilities(
    features: pd.DataFrame | Mapping[str, pd.Series], *, weights: Mapping[str, float] = CREDIT_WEIGHTS
) -> Floats:
    """The class probabilities, rows × (Poor, Standard, Good): an ordered logit of a risk.

    The risk is a sum of simple effects and two interactions.
    """
    value = {name: column.to_numpy() for name, column in features.items()}
    delay, utilization = value["delay_from_due_date"], value["credit_utilization_ratio"]
    risk = (
        weights["delay_from_due_date"] * (delay - 20) / 10
        + weights["num_of_delayed_payment"] * (value["num_of_delayed_payment"] - 13) / 5
        + weights["interest_rate"] * (value["interest_rate"] - 14) / 6
        + weights["outstanding_debt"] * np.log(value["outstanding_debt"] / 1150) / 0.7
        + weights["num_credit_inquiries"] * (value["num_credit_inquiries"] - 5.6) / 2.8
        + weights["credit_history_age"] * (value["credit_history_age"] - 215) / 80
        + np.choose((value["credit_mix"] == "Bad") * 1 - (value["credit_mix"] == "Good") * 1 + 1, [-0.7, 0.0, 0.8])
        + 0.35 * (value["payment_of_min_amount"] == "Yes")
        + 0.30 * features["type_of_loan"].str.contains("Payday").to_numpy()
        + 0.60 * ((utilization > 36) & (value["num_credit_card"] >= 7))
        + 0.60 * ((delay > 28) & (value["num_of_loan"] >= 5))
    )
    sharpness = 1.15
    poor = 1 / (1 + np.exp(-sharpness * (risk - 2.0)))
    good = 1 / (1 + np.exp(sharpness * (risk + 1.9)))
    return np.column_stack((poor, 1 - poor - good, good))


def _payment_behaviour(rows: _Statements, strain: Floats, income: Floats) -> NDArray[np.object_]:
    """The names of payment behaviours: how much is spent, and how large the payments are.

    Both rise with income and fall with strain.
    """
    spends = (np.log(income / 50_000) - 0.3 * strain + 0.9 * rows.normal("spends") > 0).astype(int)
    pays = np.digitize(0.5 * np.log(income / 50_000) - 0.4 * strain + rows.normal("pays"), [-0.2, 0.8])
    behaviours = np.array(
        [f"{level}_spent_{size}_value_payments" for level in ("Low", "High") for size in ("Small", "Medium", "Large")]
    )
    return behaviours.astype(object)[spends * 3 + pays]


def _loan_names(rows: _Statements, counts: NDArray[np.int64]) -> NDArray[np.object_]:
    """The names of each statement's loans, comma-separated: the first `counts` loans of the customer's fixed list."""
    lists = np.stack([rows.customer_choice(f"loan {n}", len(LOANS)) for n in range(MOST_LOANS)], axis=1)
    loan_names = [
        ", ".join([LOANS[loan] for loan in loans[:count]]) or "No Loan"
        for loans, count in zip(lists.tolist(), counts.tolist(), strict=True)
    ]
    return np.array(loan_names, dtype=object)


def _format_numbers(form: str, numbers: NDArray[np.int64]) -> NDArray[np.object_]:
    distinct, position = np.unique(numbers, return_inverse=True)
    return np.array([form.format(number) for number in distinct], dtype=object)[position]
