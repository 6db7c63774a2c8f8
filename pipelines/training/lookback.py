"""The look-back, where the model file leaves it to the search (`training.window: auto`).

A length is counted back from the newest fitted row. With 90 days, the search fits the last 90 days before the
validation rows, the candidate the last 90 days before the test rows, and the final fit the last 90 days of all rows.
"""

import pandas as pd

from pipelines.spec import ModelSpec
from pipelines.training.split import Split
from utils.duration import duration

LADDER = ("30d", "60d", "90d", "180d", "365d", "730d")
ALL = "all"


def lengths(parts: Split, *, spec: ModelSpec) -> list[str]:
    """The lengths that the search chooses from, the longest first. Empty if the model file fixes the window.

    A length must leave some rows out. It must keep every class and at least as many rows as the validation part has.
    """
    if spec.training.window != "auto":
        return []
    candidates = [(length, recent(parts.train, length)) for length in LADDER]
    usable = [
        length
        for length, rows in candidates
        if len(parts.validation) <= len(rows) < len(parts.train)
        and set(spec.label.classes) <= set(rows[spec.label.column])
    ]
    return [ALL, *reversed(usable)]


def recent(rows: pd.DataFrame, length: str | None) -> pd.DataFrame:
    """The rows of the last `length` before the newest row. All rows for None and `all`."""
    if length is None or length == ALL or rows.empty:
        return rows
    newest: pd.DataFrame = rows[rows["event_time"] > rows["event_time"].max() - duration(length)]
    return newest
