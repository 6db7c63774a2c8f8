"""`<model>_monitoring`: release → profile → drift → performance → decide → announce."""

from datetime import timedelta

import forms
from airflow.sdk import Asset, CronTriggerTimetable, DeltaTriggerTimetable, chain, task
from shared import model_dag, model_specs, state_of, step, window_end

from pipelines.monitoring import monitoring_steps
from pipelines.spec import ModelSpec, find_spec
from utils.duration import show_duration

# Intervals in minutes. They divide an hour, so runs start at the borders between windows. Monitoring runs at least
# hourly: labels arrive, and trainings age and fail, between two windows too.
MINUTES = (60, 30, 15, 5, 1)


@task
def release(model: str) -> list[str]:
    with step() as (settings, _, now):
        return monitoring_steps.release(settings, model=model, state_of=state_of, now=now)


# A step that reads windows.
@task
def do(name: str, model: str) -> str:
    with step() as (settings, _, now):
        spec = find_spec(settings.models_dir, model)
        return monitoring_steps.STEPS[name](settings, spec, until=min(window_end(), now), now=now)


@task
def decide(model: str) -> str:
    with step() as (settings, run_id, now):
        spec = find_spec(settings.models_dir, model)
        decision = monitoring_steps.decide_and_alert(settings, spec, caused_by=run_id, now=now)
        return f"{decision['action']}, {decision['cause']}: {decision['reason']}"


@task
def announce(model: str) -> str:
    with step() as (settings, _, _):
        return monitoring_steps.due(settings, model=model)


@task
def announce_candidate(model: str) -> str:
    with step() as (settings, _, _):
        return monitoring_steps.due_candidate(settings, model=model)


def schedule_of(window: timedelta) -> object:
    """Return a schedule that runs at the end of each window, and at least hourly."""
    minutes = next((interval for interval in MINUTES if timedelta(minutes=interval) <= window), None)
    if minutes is None:
        return DeltaTriggerTimetable(window)
    return CronTriggerTimetable("0 * * * *" if minutes == 60 else f"*/{minutes} * * * *", timezone="UTC")


def monitoring(spec: ModelSpec) -> None:
    window, name = spec.monitoring.window, spec.name
    with model_dag(
        spec,
        "monitoring",
        description=f"Watch what {name} predicts and decide whether to train it again",
        schedule=schedule_of(window),
        max_active_runs=1,
        params=forms.monitoring(),
        facts={"window": show_duration(window)},
    ):
        first = release(name)
        steps = [do.override(task_id=step_name)(step_name, name) for step_name in monitoring_steps.STEPS]
        chain(first, *steps, decide(name), announce.override(outlets=[Asset(f"retrain/{name}")])(name))
        chain(first, announce_candidate.override(outlets=[Asset(f"candidate/{name}")])(name))


for model_spec in model_specs("monitoring"):
    monitoring(model_spec)
