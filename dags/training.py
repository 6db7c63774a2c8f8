"""`<model>_training`: (pull) → claim → extract → validate → search → train → evaluate → decide → announce."""

from collections.abc import Iterator
from datetime import timedelta

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, Param, dag, get_current_context, task
from airflow.sdk.bases.operator import chain
from airflow.sdk.exceptions import AirflowSkipException
from steps import ALERTS, RETRIES, MlflowLink, as_user, model_specs, own_id, run_time, step, with_link

from pipelines.spec import ModelSpec
from pipelines.training.training_steps import STEPS
from utils.clock import utc_now
from utils.settings import Settings, load_settings

STILL_DUE = timedelta(minutes=10)

DOC = """
Trains **{name}** and decides whether the result may serve. {description}

| step | does |
|---|---|
| pull | only with `source.query`: loads its new rows into the store |
| claim | takes every open decision to retrain; a run by hand, or by cron where labels are new, records its own first |
| extract | reads point-in-time rows into an immutable snapshot |
| validate | holds the snapshot against the model file and the last one: an error stops the run, MLflow has the report |
| (open, explore) | only where Celery workers share a search: each trial is tried by one of them |
| search | tries parameters within the budget ({trials} trials, at most {timeout}) |
| train | refits the best trial and registers it as `challenger` |
| evaluate | scores it and the champion on the same rows, newer than both |
| decide | promote, reject, or wait for more labels; the row says why |
| announce | wakes `{name}_deployment` where the verdict is promote, else is skipped |
| release | only after a failure: opens the claimed decisions again for the next run |

**By hand:** *Trigger*, with a window end, a number of trials and a reason. Clients see nothing before the promotion.
"""


def schedule_of(spec: ModelSpec) -> object:
    """What monitoring decides wakes a training, and so does the model file's cron.

    There is no start date: with one, Airflow would make up for the last missed time as soon as the DAG is unpaused. A
    time that is `STILL_DUE` is not lost when the file is read again before the scheduler looks.
    """
    retrain = Asset(f"retrain/{spec.name}")
    if spec.retrain.schedule is None:
        return [retrain]
    cron = CronTriggerTimetable(spec.retrain.schedule, timezone=load_settings().timezone, run_immediately=STILL_DUE)
    return AssetOrTimeSchedule(timetable=cron, assets=retrain)


def form(spec: ModelSpec) -> dict[str, Param]:
    trials = spec.training.search.trials
    return {
        "window_end": Param(None, type=["null", "string"], format="date-time", title="Window end",
                            description="Learn from what was known at this instant. Empty: now."),
        "trials": Param(None, type=["null", "integer"], minimum=1, maximum=1000, title="Trials",
                        description=f"Points of the search space to try. Empty: {trials}, as the model file says."),
        "reason": Param("by hand", type="string", minLength=1, maxLength=500, title="Reason",
                        description="It stands in the decision's row and on the model version."),
    }  # fmt: skip


def steps_in_order() -> Iterator[tuple[str, int]]:
    """Each step, and how many tasks do it at a time."""
    workers = load_settings().search_tasks
    for name in STEPS:
        if name == "search" and workers > 1:
            yield from (("open", 1), ("explore", workers))
        yield name, 1


def _record_own_decision(settings: Settings, spec: ModelSpec, *, reason: str) -> None:
    """A run that monitoring woke has its decision already; the others record why they are."""
    from pipelines.runs import training_runs

    kind = get_current_context()["dag_run"].run_type.value  # str() of it is not its value
    if kind == "scheduled":
        training_runs.record_schedule(settings, spec, caused_by=own_id(), now=utc_now())
    elif not kind.startswith("asset"):
        training_runs.record_decision(
            settings, model=spec.name, cause="manual", reason=reason, caused_by=own_id(), now=utc_now()
        )


def training(spec: ModelSpec) -> None:
    budget = spec.training.search

    @dag(
        dag_id=f"{spec.name}_training",
        description=f"Train {spec.name} and decide whether it may serve",
        schedule=schedule_of(spec),
        catchup=False,
        max_active_runs=1,
        params=form(spec),
        default_args=RETRIES,
        **ALERTS,
        tags=["evergreen", spec.name],
        doc_md=DOC.format(name=spec.name, description=spec.description, trials=budget.trials, timeout=budget.timeout),
    )
    def build() -> None:
        @task
        def claim() -> str:
            from pipelines.runs import training_runs

            given = get_current_context()["params"]
            with step() as settings:
                _record_own_decision(settings, spec, reason=given["reason"])
                window_end = training_runs.parse_window_end(given["window_end"]) if given["window_end"] else run_time()
                run = training_runs.claim(
                    settings, spec=spec, run_id=own_id(), now=utc_now(), window_end=window_end, trials=given["trials"]
                )
            return run.run_id

        def pipeline_step(name: str, times: int = 1) -> object:
            @task(task_id=name)
            def do(claimed: str, part: int = 0) -> str:
                from pipelines.training import training_steps

                with step() as settings:
                    done = training_steps.do(name, claimed, settings=settings, now=utc_now())
                    MlflowLink.show(done.url)
                return done.summary

            return with_link(do(claimed)) if times == 1 else do.partial(claimed=claimed).expand(part=[*range(times)])

        @task(outlets=[Asset(f"candidate/{spec.name}")])
        def announce(claimed: str) -> None:
            from pipelines.runs import training_runs

            with step() as settings:
                verdict = training_runs.verdict(settings, claimed)
            if verdict != "promote":
                raise AirflowSkipException(f"the verdict is {verdict}: nothing to deploy")

        @task(trigger_rule="one_failed")
        def release() -> None:
            from pipelines.training import training_steps

            with step() as settings:
                training_steps.give_up(own_id(), settings=settings, now=utc_now())

        @task
        def pull() -> str:
            from airflow.sdk import Connection

            from pipelines.loading.pull import pull as pull_rows

            over = spec.source.connection
            with step() as settings:
                address = Connection.get(over).get_uri() if over else None
                done = pull_rows(
                    as_user("loader", settings), spec=spec, caused_by=own_id(), now=utc_now(), address=address
                )
            return f"{done.features_added:,} new feature rows and {done.labels_added:,} new labels"

        pulled = [pull()] if spec.source.query else []
        claimed = claim()
        steps = [*pulled, claimed, *(pipeline_step(name, times) for name, times in steps_in_order())]
        chain(*steps, announce(claimed))
        steps >> release()

    build()


for model_spec in model_specs(suffix="_training"):
    training(model_spec)
