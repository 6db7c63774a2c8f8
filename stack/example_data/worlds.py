"""The example worlds by model name."""

from collections.abc import Callable, Mapping
from datetime import datetime

import pandas as pd

from stack.example_data.churn import churn
from stack.example_data.credit_score import CUSTOMERS, SEED, credit_score
from stack.example_data.insurance import insurance
from stack.example_data.world import World

WORLDS: Mapping[str, Callable[[datetime, int, int], World]] = {
    "credit_score": credit_score,
    "churn": churn,
    "insurance": insurance,
}


def example_world(model: str, *, end: datetime, seed: int = SEED, customers: int = CUSTOMERS) -> pd.DataFrame | None:
    """The example data of `model`, its last rows dated on the day of `end` (UTC); None where there is no example."""
    world = WORLDS.get(model)
    return world(end, seed, customers).frame if world else None
