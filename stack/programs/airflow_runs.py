"""Wait for what Airflow does: for as long as it does anything."""

from stack.programs.airflow_client import Airflow
from utils.clock import utc_now
from utils.errors import EvergreenError
from utils.patience import Patience

RUN_PATIENCE = 300.0  # seconds in which no task runs or ends; a scheduler that replaces a killed one needs a minute
STATES = {
    "ended": ("success", "failed", "upstream_failed", "skipped", "removed"),
    "waiting": ("scheduled", "queued"),
    "under way": ("running", "restarting", "up_for_retry"),
}


def patience(airflow: Airflow, what: str, *dag_ids: str) -> Patience:
    """It lasts while Airflow gets on with tasks of `dag_ids`, by default with any: others may take the places of ours.

    A task that runs is watched by the scheduler, which ends one without a heartbeat or beyond its `execution_timeout`.
    How far it is nobody can see from outside; so while the scheduler is well, one that runs counts as progress.
    """
    return Patience(what, lambda: activity(airflow, *dag_ids), seconds=RUN_PATIENCE)


def activity(airflow: Airflow, *dag_ids: str) -> str:
    """What Airflow does, in words that change while it gets on."""
    try:
        scheduler = airflow.health().get("scheduler", "away")
        count = {
            kind: sum(airflow.count_tasks(dag_id, states) for dag_id in dag_ids or ("~",))
            for kind, states in STATES.items()
        }
    except EvergreenError as error:
        return str(error)
    told = f"tasks: {', '.join(f'{number} {kind}' for kind, number in count.items())}; the scheduler is {scheduler}"
    works = count["under way"] and scheduler == "healthy"
    return f"{told}, {utc_now():%H:%M:%S} UTC" if works else told


def end_of(airflow: Airflow, dag_id: str, run_id: str) -> str:
    """The state that a run ends in: `success` or `failed`. Raises: GaveUp, Unreachable, NotFound."""

    def ended() -> str:
        state = str(airflow.run(dag_id, run_id)["state"])
        return state if state in {"success", "failed"} else ""

    return patience(airflow, f"the end of {dag_id} {run_id}").until(ended, every=0.3)
