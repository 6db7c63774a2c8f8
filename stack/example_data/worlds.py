"""The generator of each model's example data."""

from collections.abc import Callable, Mapping
from datetime import datetime

import pandas as pd

from stack.example_data.churn import generate_churn
from stack.example_data.credit_score import CUSTOMERS, EXAMPLE_SEED, generate_credit_score
from stack.example_data.insurance import generate_insurance
from stack.example_data.world import ExampleData
from utils.errors import NotFound

GENERATORS: Mapping[str, Callable[[datetime, int, int], ExampleData]] = {
    "credit_score": generate_credit_score,
    "churn": generate_churn,
    "insurance": generate_insurance,
}


def example_world(model: str, *, end: datetime, seed: int = EXAMPLE_SEED, customers: int = CUSTOMERS) -> pd.DataFrame:
    """The example data of `model`. The newest rows have the day of `end` (UTC).

    Raises: NotFound if the model has no example.
    """
    if model not in GENERATORS:
        raise NotFound(what=f"example data for {model}", hint=f"there is some for {', '.join(GENERATORS)}")
    return GENERATORS[model](end, seed, customers).frame
