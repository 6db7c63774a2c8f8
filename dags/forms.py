"""The trigger form of each DAG. Airflow checks the input against the types."""

from typing import Any

from airflow.sdk import Param

from pipelines.spec import IDENTIFIER, ModelSpec

FILE = r"^/.+\.({})$".format


def optional(kind: str, title: str, description: str, **rules: Any) -> Param:
    """Return a field that may stay empty. `rules` are JSON Schema rules for its value."""
    return Param(None, type=["null", kind], title=title, description=description, **rules)


def instant(description: str) -> Param:
    return optional("string", "Window end", description, format="date-time")


def training(spec: ModelSpec) -> dict[str, Param]:
    trials = f"Points of the search space to try. Empty: {spec.training.search.trials}, as the model file says."
    reason = "It stands in the decision's row and on the model version."
    return {
        "window_end": instant("Learn from what was known at this instant. Empty: now."),
        "trials": optional("integer", "Trials", trials, minimum=1, maximum=1000),
        "reason": Param("by hand", type="string", minLength=1, maxLength=500, title="Reason", description=reason),
    }


def monitoring() -> dict[str, Param]:
    return {"window_end": instant("Look at windows that end by this instant. Empty: now.")}


def scoring() -> dict[str, Param]:
    query = "Rows to score: a SELECT on the database evergreen_store. Empty: the file's."
    file = "Rows to score: full path of a .csv, .csv.gz or .parquet file. Empty: the query's."
    table = "In the database evergreen_results; made, or added to. Empty: none."
    out = "Full path of a .csv or .parquet file, which is replaced. Empty: none."
    return {
        "query": optional("string", "Query", query, format="multiline"),
        "file": optional("string", "File", file, pattern=FILE(r"csv|csv\.gz|parquet")),
        "table": optional("string", "Table for the results", table, pattern=IDENTIFIER),
        "out": optional("string", "File for the results", out, pattern=FILE("csv|parquet")),
    }
