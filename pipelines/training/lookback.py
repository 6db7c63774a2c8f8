"""How far back to learn from, where the model file leaves it to the search (`training.window: auto`).

A length is counted back from the newest row that is fitted: the search fits the last 90 days before the validation
rows, the candidate the last 90 days before the test rows, the final fit the last 90 days there are.
"""

import pandas as pd

from pipelines.spec import ModelSpec
from pipelines.training.split import Split
from utils.duration import duration

LADDER = ("30d", "60d", "90d", "180d", "365d", "730d")
ALL = "all"


def lengths(parts: Split, *, spec: ModelSpec) -> list[str]:
    """What the search chooses from, the longest first; empty where the model file fixes the window.

    A length must leave something out, and keep every class and at least as many rows as it is tuned on.
    """
    if spec.training.window != "auto":
        return []
    known = [(length, recent(parts.train, length)) for length in LADDER]
    fitting = [
        length
        for length, rows in known
        if len(parts.validation) <= len(rows) < len(parts.train)
        and set(spec.label.classes) <= set(rows[spec.label.column])
    ]
    return [ALL, *reversed(fitting)]


def recent(rows: pd.DataFrame, length: str | None) -> pd.DataFrame:
    """The rows of the last `length` before the newest of them; all of them for None and `all`."""
    if length is None or length == ALL or rows.empty:
        return rows
    kept: pd.DataFrame = rows[rows["event_time"] > rows["event_time"].max() - duration(length)]
    return kept
