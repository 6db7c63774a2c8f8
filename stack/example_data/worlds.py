"""The example worlds by model name."""

from collections.abc import Callable, Mapping
from datetime import datetime

import pandas as pd

from stack.example_data.churn import churn
from stack.example_data.credit_score import CUSTOMERS, WORLD_SEED, credit_score
from stack.example_data.insurance import insurance
from stack.example_data.world import World
from utils.errors import NotFound

WORLDS: Mapping[str, Callable[[datetime, int, int], World]] = {
    "credit_score": credit_score,
    "churn": churn,
    "insurance": insurance,
}


def example_world(model: str, *, end: datetime, seed: int = WORLD_SEED, customers: int = CUSTOMERS) -> pd.DataFrame:
    """The example data of `model`. The last rows are dated on the day of `end` (UTC).

    Raises: NotFound if the model has no example.
    """
    if model not in WORLDS:
        raise NotFound(what=f"example data for {model}", hint=f"there is some for {', '.join(WORLDS)}")
    return WORLDS[model](end, seed, customers).frame
