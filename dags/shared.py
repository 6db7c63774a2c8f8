"""What the DAG files share: the models, what a task works with, and how a step fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from airflow.sdk import DAG, BaseOperatorLink, Connection, DagRunState, get_current_context, get_parsing_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from pipelines.monitoring import alert
from pipelines.runs.training_runs import parse_window_end
from pipelines.spec import ModelSpec, load_spec, model_names
from utils.clock import as_utc, utc_now
from utils.errors import EvergreenError, NothingToDo, SpecInvalid, Unreachable
from utils.settings import Settings, load_settings

SETTINGS = load_settings()  # of the parse; a step has its own
CONNECTION = "feature_store"
# The store as another user: one that fills it, where a model file has a source.query; one that may only read; one that
# may change partitions and remove old rows.
USERS = {"loader": "feature_loader", "reader": "feature_reader", "maintenance": "feature_maintenance"}


def tell(context: Any) -> None:
    """Tell people that a run failed: in the log, and at the webhook where one is set."""
    failed = context.get("ti")
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    task_id, url = (failed.task_id, failed.log_url) if failed else (None, None)
    where = f" at {task_id}" if task_id else ""
    text = f"{dag_id} failed{where}; what served before serves on" + (f": {url}" if url else "")
    alert.send(SETTINGS, text, dag=dag_id, run=run_id, task=task_id, reason=context.get("reason"), url=url)


# Of every DAG. The callback is the run's and not its tasks': however many of them fail, people hear of it once. A step
# does the same work again and changes nothing, so a passing fault costs a minute and no more.
DEFAULTS: dict[str, Any] = {
    "catchup": False,
    "on_failure_callback": tell,
    "default_args": {
        "owner": "evergreen",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(hours=2),
    },
}


def page(kind: str, /, **facts: object) -> str:
    """What the DAG's page in Airflow says: `pages/KIND.md` with `facts` filled in."""
    return (Path(__file__).parent / "pages" / f"{kind}.md").read_text(encoding="utf-8").format(**facts)


def model_dag(spec: ModelSpec, kind: str, *, facts: dict[str, object] | None = None, **options: Any) -> DAG:
    """The DAG `<model>_<kind>`. `options` are Airflow's own, `facts` fill in its page."""
    text = page(kind, name=spec.name, **(facts or {}))
    return DAG(f"{spec.name}_{kind}", tags=["evergreen", spec.name], doc_md=text, **{**DEFAULTS, **options})


def model_specs(kind: str) -> Iterator[ModelSpec]:
    """Every model file that can be used. One that can't becomes a DAG whose only task says what is wrong with it.

    A task's process reads the DAG file again, but needs only its own DAG: then there is one model, or none.
    """
    wanted = get_parsing_context().dag_id
    for name in model_names(SETTINGS.models_dir):
        if wanted in (None, f"{name}_{kind}"):
            try:
                yield load_spec(SETTINGS.models_dir / f"{name}.yaml")
            except SpecInvalid as error:
                _broken(f"{name}_{kind}", str(error))


def _broken(dag_id: str, problem: str) -> None:
    with DAG(dag_id, schedule=None, tags=["model file is wrong"], doc_md=f"**{problem}**", **DEFAULTS):
        read_model_file.override(retries=0)(problem)


@task
def read_model_file(problem: str) -> None:
    raise AirflowFailException(problem)


class Work(NamedTuple):
    """What a step works with. `run_id` is unique over all DAGs; `now` is UTC."""

    settings: Settings
    run_id: str
    now: datetime


@contextmanager
def step(*roles: str) -> Iterator[Work]:
    """What the current task works with; the store's address and password are those of the connection `feature_store`.

    The settings have the passwords of `roles` too, from their connections in `USERS`. An error that another try can't
    mend fails the task at once, with its one line; one that it may mend is retried.
    """
    run = get_current_context()["dag_run"]
    try:
        store = Connection.get(CONNECTION)
        given = {"mariadb_host": store.host, "mariadb_port": store.port, "db_pipeline_password": store.password}
        given |= {f"db_{role}_password": Connection.get(USERS[role]).password for role in roles}
        yield Work(load_settings(**given), f"{run.dag_id}/{run.run_id}", utc_now())
    except NothingToDo as nothing:
        raise AirflowSkipException(str(nothing)) from None
    except Unreachable:
        raise
    except EvergreenError as error:
        raise AirflowFailException(error.without_values) from None


def address_of(connection: str | None) -> str | None:
    """The database URL of one of Airflow's connections; None for none."""
    return Connection.get(connection).get_uri() if connection else None


def form() -> dict[str, Any]:
    """What the run's form says, or its defaults; empty text is None."""
    return {name: value or None for name, value in get_current_context()["params"].items()}


def run_type() -> str:
    """What started the current run, as Airflow names it: `scheduled`, `asset_triggered`, `manual` and others."""
    return str(get_current_context()["dag_run"].run_type.value)  # str() of the member is not its value


def window_end() -> datetime:
    """The form's window end, or else the instant the run stands for, UTC; a run started by an Asset has one, too."""
    asked = form()["window_end"]
    return parse_window_end(asked) if asked else as_utc(get_current_context()["dag_run"].run_after)


def state_of(run_id: str) -> str | None:
    """Airflow's state of the run whose id in `Work` is `run_id`; None where there is no such run any more."""
    dag_id, _, name = run_id.partition("/")
    ti = get_current_context()["ti"]
    if not ti.get_dr_count(dag_id, run_ids=[name]):
        return None
    return str(DagRunState(ti.get_dagrun_state(dag_id, name)).value)


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
