"""Batch scoring with the values of a form, as the scoring DAG has them."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from utils.settings import Settings


def score_form(settings: Settings, model: str, form: Mapping[str, str | None], *, now: datetime) -> str:
    """Score the rows of the form's `query` or `file`. Return a summary in two lines.

    form: the fields `query`, `file`, `table` and `out`. An empty field is None. `table` and `out` name the results.

    Raises: the errors of `score.score_rows`.
    """
    from pipelines.batch_scoring.score import (
        score_rows,  # slow: it imports CatBoost, and Airflow parses the DAG file often
    )

    file, out = (Path(path) if (path := form[name]) else None for name in ("file", "out"))
    return score_rows(settings, model, now=now, query=form["query"], file=file, table=form["table"], out=out).summary
