"""`<model>_scoring` for every model: predictions for many rows at once, whenever somebody asks for them."""

from pathlib import Path

from airflow.sdk import Param, dag, get_current_context, task
from steps import ALERTS, RETRIES, as_user, model_specs, step

from pipelines.spec import IDENTIFIER, ModelSpec
from utils.clock import utc_now

DOC = """
Scores many rows at once by the version of **{name}** that serves: all of them, or none where one breaks a rule of the
model file. Every prediction is in `prediction_log` with its version.

**By hand:** *Trigger*, with either a query or a file. A query is a SELECT on the database `evergreen_store` (try
`SELECT * FROM {name}_latest`), run by a user who may only read. Results go to a file, to a table of the database
`evergreen_results`, to both, or to the log alone. Files are on Airflow's host. What the run returns says where the
results are, and `evergreen score {name}` does the same from the command line.

A run that fails is not tried again: rows that it has logged would be logged twice.
"""


def form() -> dict[str, Param]:
    file = r"^/.+\.({})$".format
    return {
        "query": Param(None, type=["null", "string"], format="multiline", title="Query",
                       description="Rows to score: a SELECT on the database evergreen_store. Empty: the file's."),
        "file": Param(None, type=["null", "string"], pattern=file(r"csv|csv\.gz|parquet"), title="File",
                      description="Rows to score: full path of a .csv, .csv.gz or .parquet file. Empty: the query's."),
        "table": Param(None, type=["null", "string"], pattern=IDENTIFIER, title="Table for the results",
                       description="In the database evergreen_results; made, or added to. Empty: none."),
        "out": Param(None, type=["null", "string"], pattern=file("csv|parquet"), title="File for the results",
                     description="Full path of a .csv or .parquet file, which is replaced. Empty: none."),
    }  # fmt: skip


def scoring(spec: ModelSpec) -> None:
    @dag(
        dag_id=f"{spec.name}_scoring",
        description=f"Score many rows by the version of {spec.name} that serves",
        schedule=None,
        max_active_runs=1,
        params=form(),
        default_args=RETRIES,
        **ALERTS,
        tags=["evergreen", spec.name],
        doc_md=DOC.format(name=spec.name),
    )
    def build() -> None:
        @task(retries=0)
        def score() -> str:
            from pipelines.batch_scoring.score import score_rows

            given = {name: value or None for name, value in get_current_context()["params"].items()}
            file, out = (Path(given[name]) if given[name] else None for name in ("file", "out"))
            with step() as settings:
                done = score_rows(
                    as_user("reader", settings), spec.name, now=utc_now(),
                    query=given["query"], file=file, table=given["table"], out=out,
                )  # fmt: skip
            return done.summary

        score()

    build()


for model_spec in model_specs(suffix="_scoring"):
    scoring(model_spec)
