"""`<model>_scoring`: predictions for many rows at once, on demand."""

import forms
from airflow.sdk import task
from shared import form, model_dag, model_specs, step

from pipelines.batch_scoring.scoring_form import score_form
from pipelines.spec import ModelSpec


@task(retries=0)
def score(model: str) -> str:
    with step("reader") as (settings, _, now):
        return score_form(settings, model, form(), now=now)


def scoring(spec: ModelSpec) -> None:
    with model_dag(
        spec,
        "scoring",
        description=f"Score many rows by the version of {spec.name} that serves",
        schedule=None,
        max_active_runs=1,
        params=forms.scoring(),
    ):
        score(spec.name)


for model_spec in model_specs("scoring"):
    scoring(model_spec)
