"""Wait for Airflow's runs as long as Airflow makes progress."""

from stack.programs.airflow_client import Airflow
from utils.clock import utc_now
from utils.errors import EvergreenError
from utils.patience import Patience

RUN_PATIENCE = 300.0  # seconds without a running or ending task; a scheduler that was killed is back after a minute
STATES = {  # kind of task → Airflow's states
    "ended": ("success", "failed", "upstream_failed", "skipped", "removed"),
    "waiting": ("scheduled", "queued"),
    "under way": ("running", "restarting", "up_for_retry"),
}


def patience(airflow: Airflow, awaited: str, *dag_ids: str) -> Patience:
    """Return a Patience that lasts while Airflow makes progress with tasks of `dag_ids`.

    By default the tasks of all DAGs count, because other tasks may occupy the worker slots.

    The progress within a running task is not visible, so a running task counts as progress while the scheduler is
    healthy. The scheduler ends a task that sends no heartbeat or exceeds its `execution_timeout`.
    """
    return Patience(awaited, lambda: activity(airflow, *dag_ids), seconds=RUN_PATIENCE)


def activity(airflow: Airflow, *dag_ids: str) -> str:
    """Describe the tasks and the scheduler in a text that changes while Airflow makes progress."""
    try:
        scheduler = airflow.health().get("scheduler", "unavailable")
        task_counts = {
            kind: sum(airflow.count_tasks(dag_id, states) for dag_id in dag_ids or ("~",))
            for kind, states in STATES.items()
        }
    except EvergreenError as error:
        return str(error)
    tasks_text = ", ".join(f"{count} {kind}" for kind, count in task_counts.items())
    text = f"tasks: {tasks_text}; the scheduler is {scheduler}"
    is_progress = task_counts["under way"] and scheduler == "healthy"
    return f"{text}, {utc_now():%H:%M:%S} UTC" if is_progress else text


def end_of(airflow: Airflow, dag_id: str, run_id: str) -> str:
    """Wait for the end of a run and return its state: `success` or `failed`. Raises: GaveUp, Unreachable, NotFound."""

    def final_state() -> str:
        state = str(airflow.run(dag_id, run_id)["state"])
        return state if state in {"success", "failed"} else ""

    return patience(airflow, f"the end of {dag_id} {run_id}").until(final_state, every=0.3)
