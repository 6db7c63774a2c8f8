"""`<model>_monitoring` for every model: release → profile → drift → performance → decide → announce."""

from datetime import timedelta

from airflow.sdk import Asset, CronTriggerTimetable, DeltaTriggerTimetable, Param, dag, get_current_context, task
from airflow.sdk.bases.operator import chain
from steps import ALERTS, RETRIES, model_specs, own_id, run_time, state_of, step

from pipelines.monitoring.monitoring_steps import STEPS
from pipelines.spec import ModelSpec
from utils.clock import utc_now
from utils.duration import show_duration

# Minutes, each a divisor of the next, so that runs fall on the borders between windows. At least hourly: labels arrive,
# trainings grow old and die between two windows too.
MINUTES = (60, 30, 15, 5, 1)

DOC = """
Watches what **{name}** predicts and decides whether to train it again. Windows are {window} long.

| step | does |
|---|---|
| release | opens the decisions of trainings that died without saying so |
| profile | counts the logged rows of each new window, and what is missing, unseen or refused in it |
| drift | compares each window with the profile of the version that made its predictions |
| performance | compares predictions with the labels that had time to arrive |
| decide | writes a row: retrain or hold, with every reason and what is in the way; alerts where people must act |
| announce | wakes `{name}_training` where a decision waits for it, else is skipped |
| announce_candidate | wakes `{name}_deployment` where a candidate still waits for it, else is skipped |

A run that dies is made up for by the next one. **By hand:** *Trigger*, to look now instead of at the next full hour.
"""


def schedule_of(window: timedelta) -> object:
    """As often as a window ends, and at least hourly."""
    minutes = next((each for each in MINUTES if timedelta(minutes=each) <= window), None)
    if minutes is None:
        return DeltaTriggerTimetable(window)
    return CronTriggerTimetable("0 * * * *" if minutes == 60 else f"*/{minutes} * * * *", timezone="UTC")


def monitoring(spec: ModelSpec) -> None:
    @dag(
        dag_id=f"{spec.name}_monitoring",
        description=f"Watch what {spec.name} predicts and decide whether to train it again",
        schedule=schedule_of(spec.monitoring.window),
        catchup=False,
        max_active_runs=1,
        params={
            "window_end": Param(None, type=["null", "string"], format="date-time", title="Window end",
                                description="Look at windows that end by this instant. Empty: now."),
        },
        default_args=RETRIES,
        **ALERTS,
        tags=["evergreen", spec.name],
        doc_md=DOC.format(name=spec.name, window=show_duration(spec.monitoring.window)),
    )  # fmt: skip
    def build() -> None:
        @task
        def release() -> list[str]:
            from pipelines.monitoring import monitoring_steps

            with step() as settings:
                return monitoring_steps.release(settings, model=spec.name, state_of=state_of, now=utc_now())

        def monitoring_step(name: str) -> object:
            @task(task_id=name)
            def do() -> str:
                from pipelines.runs.training_runs import parse_window_end

                given = get_current_context()["params"]["window_end"]
                with step() as settings:
                    until = min(parse_window_end(given), utc_now()) if given else run_time()
                    return STEPS[name](settings, spec, until=until, now=utc_now())

            return do()

        @task
        def decide() -> str:
            from pipelines.monitoring import monitoring_steps

            with step() as settings:
                made = monitoring_steps.decide(settings, spec, caused_by=own_id(), now=utc_now())
            return f"{made['action']}, {made['cause']}: {made['reason']}"

        @task(outlets=[Asset(f"retrain/{spec.name}")])
        def announce() -> str:
            from pipelines.monitoring import monitoring_steps

            with step() as settings:
                return monitoring_steps.due(settings, model=spec.name)

        @task(outlets=[Asset(f"candidate/{spec.name}")])
        def announce_candidate() -> str:
            from pipelines.monitoring import monitoring_steps

            with step() as settings:
                return monitoring_steps.due_candidate(settings, model=spec.name)

        released = release()
        chain(released, *(monitoring_step(name) for name in STEPS), decide(), announce())
        chain(released, announce_candidate())

    build()


for model_spec in model_specs(suffix="_monitoring"):
    monitoring(model_spec)
