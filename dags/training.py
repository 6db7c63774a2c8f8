"""`<model>_training`: (pull) → claim → extract → validate → search → train → evaluate → decide → announce."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import forms
from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, chain, task
from airflow.sdk.exceptions import AirflowSkipException
from shared import SETTINGS, MlflowLink, address_of, form, model_dag, model_specs, run_type, step, window_end, with_link

from pipelines.runs import training_runs
from pipelines.spec import ModelSpec, find_spec
from pipelines.training import training_steps

STILL_DUE = timedelta(minutes=10)


@task
def pull(model: str) -> str:
    with step("loader") as (settings, run_id, now):
        spec = find_spec(settings.models_dir, model)
        address = address_of(spec.source.connection)
        return training_steps.pull(settings, spec, caused_by=run_id, now=now, address=address)


@task
def claim(model: str) -> str:
    with step() as (settings, run_id, now):
        training_steps.begin(
            settings,
            find_spec(settings.models_dir, model),
            run_id=run_id,
            run_type=run_type(),
            reason=form()["reason"],
            window_end=window_end(),
            trials=form()["trials"],
            now=now,
        )
        return run_id


# One step of a run. `part` numbers the tasks that share a search.
@task
def do(name: str, run: str, part: int = 0) -> str:
    with step() as (settings, _, now):
        result = training_steps.run_step(name, run, settings=settings, now=now)
        MlflowLink.show(result.url)
        return result.summary


@task
def announce(run: str) -> None:
    with step() as (settings, _, _):
        verdict = training_runs.read_verdict(settings, run)
    if verdict != "promote":
        raise AirflowSkipException(f"the verdict is {verdict}: nothing to deploy")


@task(trigger_rule="one_failed")
def release() -> None:
    with step() as (settings, run_id, now):
        training_steps.give_up(run_id, settings=settings, now=now)


def schedule_of(spec: ModelSpec) -> object:
    """Return the schedule: a decision of monitoring starts a training, and so does the model file's cron.

    There is no start date. With one, Airflow would make up for the last missed time once the DAG is unpaused.
    `STILL_DUE` keeps a time that passes while the DAG file is parsed again, before the scheduler reads it.
    """
    retrain = Asset(f"retrain/{spec.name}")
    if spec.retrain.schedule is None:
        return [retrain]
    cron = CronTriggerTimetable(spec.retrain.schedule, timezone=SETTINGS.timezone, run_immediately=STILL_DUE)
    return AssetOrTimeSchedule(timetable=cron, assets=retrain)


def steps_of(run: Any) -> Iterator[Any]:
    """Yield the task of each step. If workers share the search, a task opens it and one task a worker runs trials."""
    workers = SETTINGS.search_tasks
    for name in training_steps.STEPS:
        if name == "search" and workers > 1:
            yield with_link(do.override(task_id="open")("open", run))
            yield do.override(task_id="explore").partial(name="explore", run=run).expand(part=[*range(workers)])
        yield with_link(do.override(task_id=name)(name, run))


def training(spec: ModelSpec) -> None:
    budget = spec.training.search
    facts = {"description": spec.description, "trials": budget.trials, "timeout": budget.timeout}
    with model_dag(
        spec,
        "training",
        description=f"Train {spec.name} and decide whether it may serve",
        facts=facts,
        schedule=schedule_of(spec),
        max_active_runs=1,
        params=forms.training(spec),
    ):
        run: Any = claim(spec.name)  # an XComArg, which stands for the value
        steps = [*([pull(spec.name)] if spec.source.query else []), run, *steps_of(run)]
        chain(*steps, announce.override(outlets=[Asset(f"candidate/{spec.name}")])(run))
        steps >> release()


for model_spec in model_specs("training"):
    training(model_spec)
