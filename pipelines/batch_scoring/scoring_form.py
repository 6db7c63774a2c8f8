"""Batch scoring by a form: the names of files and tables as text, or None if empty."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from utils.settings import Settings


def score_form(settings: Settings, model: str, form: Mapping[str, str | None], *, now: datetime) -> str:
    """Score the rows of the form's `query` or `file` into its `table` or `out`. Return a summary in two lines.

    Raises: the errors of `score.score_rows`.
    """
    from pipelines.batch_scoring.score import score_rows  # imports CatBoost; the DAG file is parsed often

    file, out = (Path(path) if (path := form[name]) else None for name in ("file", "out"))
    return score_rows(settings, model, now=now, query=form["query"], file=file, table=form["table"], out=out).summary
