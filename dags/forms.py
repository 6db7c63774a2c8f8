"""The forms that a run by hand is started with, by DAG. Airflow checks what is given against their types."""

from airflow.sdk import Param

from pipelines.spec import IDENTIFIER, ModelSpec

FILE = r"^/.+\.({})$".format


def training(spec: ModelSpec) -> dict[str, Param]:
    trials = spec.training.search.trials
    return {
        "window_end": Param(None, type=["null", "string"], format="date-time", title="Window end",
                            description="Learn from what was known at this instant. Empty: now."),
        "trials": Param(None, type=["null", "integer"], minimum=1, maximum=1000, title="Trials",
                        description=f"Points of the search space to try. Empty: {trials}, as the model file says."),
        "reason": Param("by hand", type="string", minLength=1, maxLength=500, title="Reason",
                        description="It stands in the decision's row and on the model version."),
    }  # fmt: skip


def monitoring() -> dict[str, Param]:
    return {
        "window_end": Param(None, type=["null", "string"], format="date-time", title="Window end",
                            description="Look at windows that end by this instant. Empty: now."),
    }  # fmt: skip


def scoring() -> dict[str, Param]:
    return {
        "query": Param(None, type=["null", "string"], format="multiline", title="Query",
                       description="Rows to score: a SELECT on the database evergreen_store. Empty: the file's."),
        "file": Param(None, type=["null", "string"], pattern=FILE(r"csv|csv\.gz|parquet"), title="File",
                      description="Rows to score: full path of a .csv, .csv.gz or .parquet file. Empty: the query's."),
        "table": Param(None, type=["null", "string"], pattern=IDENTIFIER, title="Table for the results",
                       description="In the database evergreen_results; made, or added to. Empty: none."),
        "out": Param(None, type=["null", "string"], pattern=FILE("csv|parquet"), title="File for the results",
                     description="Full path of a .csv or .parquet file, which is replaced. Empty: none."),
    }  # fmt: skip
