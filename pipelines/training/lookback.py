"""The look-back, if the search chooses it (`training.window: auto` in the model file).

A look-back is counted from the newest row that a model is fitted on. With 90 days, the search fits on the last 90 days
before the validation rows. The candidate is fitted on the last 90 days before the test rows, and the final fit on the
last 90 days of all rows.
"""

import pandas as pd

from pipelines.spec import ModelSpec
from pipelines.training.split import Split
from utils.duration import duration

LIMITED_LOOK_BACKS = ("30d", "60d", "90d", "180d", "365d", "730d")
ALL_ROWS = "all"
LOOK_BACK_KEY = "window"  # the name under which Optuna and `best_params` store the look-back


def look_back_choices(parts: Split, *, spec: ModelSpec) -> list[str]:
    """The look-backs from which the search chooses, the longest first. Empty if the model file sets the look-back.

    A look-back must leave some rows out. It must keep every class, and as many rows as the validation part has.
    """
    if spec.training.window != "auto":
        return []
    rows_by_look_back = {look_back: newest_rows(parts.train, look_back) for look_back in LIMITED_LOOK_BACKS}
    usable = [
        look_back
        for look_back, rows in rows_by_look_back.items()
        if len(parts.validation) <= len(rows) < len(parts.train)
        and set(spec.label.classes) <= set(rows[spec.label.column])
    ]
    return [ALL_ROWS, *reversed(usable)]


def newest_rows(rows: pd.DataFrame, look_back: str | None) -> pd.DataFrame:
    """The rows at most `look_back` older than the newest row. All rows if `look_back` is None or `all`."""
    if look_back is None or look_back == ALL_ROWS or rows.empty:
        return rows
    newest: pd.DataFrame = rows[rows["event_time"] > rows["event_time"].max() - duration(look_back)]
    return newest
