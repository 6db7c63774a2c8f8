"""What the DAG files share: the models, the settings of a task, and how a step fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperatorLink, Connection, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from pipelines.spec import ModelSpec, load_spec, model_names
from utils.clock import as_utc
from utils.errors import EvergreenError, NothingToDo, SpecInvalid, Unreachable
from utils.settings import Settings, load_settings

CONNECTION = "feature_store"
# The store as another user: one that fills it, where a model file has a source.query; one that may only read; one that
# may change partitions and remove old rows.
USERS = {"loader": "feature_loader", "reader": "feature_reader", "maintenance": "feature_maintenance"}
# A step does the same work again and changes nothing, so a passing fault costs a minute and no more.
RETRIES: dict[str, Any] = {
    "owner": "evergreen",
    "retries": 3,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": True,
    "execution_timeout": timedelta(hours=2),
}


def tell(context: Any) -> None:
    """Tell people that a run failed: in the log, and at the webhook where one is set."""
    from pipelines.monitoring import alert

    failed = context.get("ti")
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    task, url = (failed.task_id, failed.log_url) if failed else (None, None)
    where = f" at {task}" if task else ""
    text = f"{dag_id} failed{where}; what served before serves on" + (f": {url}" if url else "")
    alert.send(load_settings(), text, dag=dag_id, run=run_id, task=task, reason=context.get("reason"), url=url)


# Of every DAG. It is the run's callback and not its tasks': however many of them fail, people hear of it once.
ALERTS: dict[str, Any] = {"on_failure_callback": tell}


def model_specs(*, suffix: str) -> Iterator[ModelSpec]:
    """Every model file that can be used. One that can't becomes a DAG whose only task says what is wrong with it."""
    settings = load_settings()
    for name in model_names(settings.models_dir):
        try:
            yield load_spec(settings.models_dir / f"{name}.yaml")
        except SpecInvalid as error:
            _broken(f"{name}{suffix}", str(error))


def _broken(dag_id: str, problem: str) -> None:
    with DAG(dag_id, schedule=None, tags=["model file is wrong"], doc_md=f"**{problem}**", **ALERTS):

        @task
        def read_model_file() -> None:
            raise AirflowFailException(problem)

        read_model_file()


@contextmanager
def step() -> Iterator[Settings]:
    """The settings a step works with; the store's address and credentials are those of the connection `feature_store`.

    An error that another try can't mend fails the task at once, with its one line; one that it may mend is retried.
    """
    try:
        store = Connection.get(CONNECTION)
        given = {"mariadb_host": store.host, "mariadb_port": store.port, "db_pipeline_password": store.password}
        yield load_settings(**given)
    except NothingToDo as nothing:
        raise AirflowSkipException(str(nothing)) from None
    except Unreachable:
        raise
    except EvergreenError as error:
        raise AirflowFailException(error.without_values) from None


def as_user(role: str, settings: Settings) -> Settings:
    """`settings` with the password of `role` too, from its connection in `USERS`."""
    return load_settings(**{**dict(settings), f"db_{role}_password": Connection.get(USERS[role]).password})


def own_id() -> str:
    """The id of the current run, unique over all DAGs."""
    run = get_current_context()["dag_run"]
    return f"{run.dag_id}/{run.run_id}"


def run_time() -> datetime:
    """The instant the current run stands for, UTC. Runs started by an Asset have no logical date; all have this."""
    return as_utc(get_current_context()["dag_run"].run_after)


def state_of(own: str) -> str | None:
    """Airflow's state of the run that `own_id` named so; None where there is no such run any more."""
    dag_id, _, run_id = own.partition("/")
    ti = get_current_context()["ti"]
    if not ti.get_dr_count(dag_id, run_ids=[run_id]):
        return None
    return str(ti.get_dagrun_state(dag_id, run_id).value)


class MlflowLink(BaseOperatorLink):
    """A button on the task that opens what the step made in MLflow."""

    name = "MLflow"

    def get_link(self, operator: object, *, ti_key: Any) -> str:
        return str(ti_key.xcom_pull(task_ids=ti_key.task_id, key=self.name) or "")

    @classmethod
    def show(cls, url: str | None) -> None:
        """Let the current task's button open `url`; without one the button stays grey."""
        if url:
            get_current_context()["ti"].xcom_push(key=cls.name, value=url)


def with_link(made: Any) -> Any:
    """Give a step its MLflow button."""
    made.operator.operator_extra_links = (MlflowLink(),)
    return made
