"""Batch scoring as it is asked for by a form: names of files and tables as text, empty ones None."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from utils.settings import Settings


def score_form(settings: Settings, model: str, form: Mapping[str, str | None], *, now: datetime) -> str:
    """Score the rows of the form's `query` or `file` into its `table` or `out`; says in two lines what was done.

    Raises: as `score.score_rows`.
    """
    from pipelines.batch_scoring.score import score_rows  # CatBoost: the DAG file imports this one at every parse

    file, out = (Path(path) if (path := form[name]) else None for name in ("file", "out"))
    return score_rows(settings, model, now=now, query=form["query"], file=file, table=form["table"], out=out).summary
