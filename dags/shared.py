"""Code that the DAG files share: the models, the context of a step, and the handling of errors."""

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

SETTINGS = load_settings()  # for parsing only; each step loads its own settings
CONNECTION = "feature_store"
# Connections to the store as other users: the loader fills it if the model file has a source.query, the reader may only
# read, and maintenance may change partitions and remove old rows.
USERS = {"loader": "feature_loader", "reader": "feature_reader", "maintenance": "feature_maintenance"}


def report_failure(context: Any) -> None:
    """Report a failed run in the log, and to the webhook if one is set."""
    task_instance = context.get("ti")
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    task_id, url = (task_instance.task_id, task_instance.log_url) if task_instance else (None, None)
    task_text = f" at {task_id}" if task_id else ""
    text = f"{dag_id} failed{task_text}; what served before serves on" + (f": {url}" if url else "")
    alert.send(SETTINGS, text, dag=dag_id, run=run_id, task=task_id, reason=context.get("reason"), url=url)


# Defaults of every DAG. The callback belongs to the run and not to its tasks, so a run sends one alert however many
# tasks fail. Steps can be retried safely, so a passing fault costs a minute at most.
DEFAULTS: dict[str, Any] = {
    "catchup": False,
    "on_failure_callback": report_failure,
    "default_args": {
        "owner": "evergreen",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(hours=2),
    },
}


def page(kind: str, /, **facts: object) -> str:
    """Return the text of the DAG's page in Airflow: `pages/KIND.md` with `facts` filled in."""
    return (Path(__file__).parent / "pages" / f"{kind}.md").read_text(encoding="utf-8").format(**facts)


def model_dag(spec: ModelSpec, kind: str, *, facts: dict[str, object] | None = None, **options: Any) -> DAG:
    """Return the DAG `<model>_<kind>`. `options` are Airflow's own. `facts` are filled into its page."""
    text = page(kind, name=spec.name, **(facts or {}))
    return DAG(f"{spec.name}_{kind}", tags=["evergreen", spec.name], doc_md=text, **{**DEFAULTS, **options})


def model_specs(kind: str) -> Iterator[ModelSpec]:
    """Yield the spec of each valid model file. An invalid one becomes a DAG whose only task shows the error.

    A task's process parses the DAG file again but needs only its own DAG. It gets at most one model.
    """
    parsed_dag = get_parsing_context().dag_id
    for name in model_names(SETTINGS.models_dir):
        if parsed_dag in (None, f"{name}_{kind}"):
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
    """The context of a step. `run_id` is unique over all DAGs. `now` is UTC."""

    settings: Settings
    run_id: str
    now: datetime


@contextmanager
def step(*roles: str) -> Iterator[Work]:
    """Provide the context of the current task. The connection `feature_store` has the store's address and password.

    The settings also have the passwords of `roles`, from their connections in `USERS`. Airflow retries errors that may
    pass. All other errors fail the task at once, with their one-line message.
    """
    run = get_current_context()["dag_run"]
    try:
        store = Connection.get(CONNECTION)
        overrides = {"mariadb_host": store.host, "mariadb_port": store.port, "db_pipeline_password": store.password}
        overrides |= {f"db_{role}_password": Connection.get(USERS[role]).password for role in roles}
        yield Work(load_settings(**overrides), f"{run.dag_id}/{run.run_id}", utc_now())
    except NothingToDo as error:
        raise AirflowSkipException(str(error)) from None
    except Unreachable:
        raise
    except EvergreenError as error:
        raise AirflowFailException(error.without_values) from None


def address_of(connection: str | None) -> str | None:
    """Return the database URL of an Airflow connection, or None without a connection."""
    return Connection.get(connection).get_uri() if connection else None


def form() -> dict[str, Any]:
    """Return the values of the run's form, or its defaults. Empty text becomes None."""
    return {name: value or None for name, value in get_current_context()["params"].items()}


def run_type() -> str:
    """Return the type of the current run in Airflow's words: `scheduled`, `asset_triggered`, `manual` and so on."""
    return str(get_current_context()["dag_run"].run_type.value)  # str() of the member is not its value


def window_end() -> datetime:
    """Return the form's window end, or else the run's `run_after`, in UTC. Runs started by an Asset have one too."""
    end = form()["window_end"]
    return parse_window_end(end) if end else as_utc(get_current_context()["dag_run"].run_after)


def state_of(run_id: str) -> str | None:
    """Return Airflow's state of the run with this `Work.run_id`, or None if the run no longer exists."""
    dag_id, _, name = run_id.partition("/")
    ti = get_current_context()["ti"]
    if not ti.get_dr_count(dag_id, run_ids=[name]):
        return None
    return str(DagRunState(ti.get_dagrun_state(dag_id, name)).value)


class MlflowLink(BaseOperatorLink):
    """A button on the task that opens the step's result in MLflow."""

    name = "MLflow"

    def get_link(self, operator: object, *, ti_key: Any) -> str:
        return str(ti_key.xcom_pull(task_ids=ti_key.task_id, key=self.name) or "")

    @classmethod
    def show(cls, url: str | None) -> None:
        """Let the current task's button open `url`. Without a URL the button stays grey."""
        if url:
            get_current_context()["ti"].xcom_push(key=cls.name, value=url)


def with_link(result: Any) -> Any:
    """Add the MLflow button to the step that returns `result`."""
    result.operator.operator_extra_links = (MlflowLink(),)
    return result
