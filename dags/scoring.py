"""`<model>_scoring`: predictions for many rows at once, whenever somebody asks for them."""

from airflow.sdk import Param, task
from shared import form, model_dag, model_specs, step

from pipelines.batch_scoring.scoring_form import score_form
from pipelines.spec import IDENTIFIER, ModelSpec

FILE = r"^/.+\.({})$".format


@task(retries=0)
def score(model: str) -> str:
    with step("reader") as (settings, _, now):
        return score_form(settings, model, form(), now=now)


def params() -> dict[str, Param]:
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


def scoring(spec: ModelSpec) -> None:
    with model_dag(
        spec, "scoring", description=f"Score many rows by the version of {spec.name} that serves",
        schedule=None, max_active_runs=1, params=params(),
    ):  # fmt: skip
        score(spec.name)


for model_spec in model_specs("scoring"):
    scoring(model_spec)
