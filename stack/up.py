"""`up`: bring up the stack from a checkout. Each step checks the current state and adds only what is missing."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from pipelines.spec import ModelSpec, load_spec, model_names
from stack.first_training import is_live, train_first
from stack.programs import airflow_programs, mariadb, ports, secrets
from stack.programs.airflow_client import LOADER_CONNECTION, MAINTENANCE_CONNECTION, READER_CONNECTION, Airflow
from stack.programs.health import answers, is_healthy
from stack.programs.lock import hold_lock
from stack.programs.program import Program
from stack.programs.program_list import programs
from stack.programs.starting import wait_for_programs
from stack.programs.supervisor import STOPPED, Supervisor
from stack.progress import Steps
from stack.summary import is_ready, print_summary
from utils.clock import utc_now
from utils.errors import StackError, Unreachable
from utils.settings import Settings

TEAM_AIRFLOW_PATIENCE = 10.0  # seconds without a change in the health of a team's own Airflow
CONSUMERS_FIRST = ("deployment", "training", "monitoring", "scoring")  # order, because a paused DAG loses its events


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a stack on this machine.

    settings: the settings, with all secrets.
    specs: the model files.
    programs: the programs that this machine runs.
    supervisor: the supervisor of the programs.
    """

    settings: Settings
    specs: tuple[ModelSpec, ...]
    programs: tuple[Program, ...]
    supervisor: Supervisor

    def select(self, prefix: str) -> list[Program]:
        """The programs whose name begins with `prefix`."""
        return [program for program in self.programs if program.name.startswith(prefix)]


def up(settings: Settings, *, console: Console, since: float | None = None) -> Settings:
    """Bring up the stack, train and deploy models without a version, and print how to use them.

    `since`: Unix time from which the total time counts, by default now. Returns the settings with the generated
    secrets.

    Raises: StackError, SpecInvalid, Unreachable, AccessDenied, DeploymentFailed. After an error, programs that were
    started keep running.
    """
    begun = since or time.time()
    specs = tuple(load_spec(settings.models_dir / f"{name}.yaml") for name in model_names(settings.models_dir))
    with hold_lock(settings), Steps(console) as steps:
        with steps.step("secrets") as step:
            settings, new_variables = secrets.ensure(settings)
            step.note = f"{len(new_variables)} written to {settings.env_file}" if new_variables else "kept"
        plan = _supervise(settings, specs, steps)
        with ThreadPoolExecutor(1) as executor:  # Airflow starts most slowly and does not need the other programs
            airflow_start = executor.submit(_start_airflow, plan, steps)
            _start_data(plan, steps)
            airflow_start.result()
        begin_models(settings, specs, steps, begun=begun)
        _await_versions(plan, steps)
    print_summary(settings, specs, console, begun=begun)
    return settings


def _supervise(settings: Settings, specs: tuple[ModelSpec, ...], steps: Steps) -> Plan:
    with steps.step("ports and supervisor") as step:
        plan = Plan(settings, specs, tuple(programs(settings)), Supervisor(settings))
        if plan.supervisor.running:
            ports.check(plan.programs, settings)
        else:
            ended_count = plan.supervisor.clear_leftovers()
            ports.check(plan.programs, settings)
            step.note = f"ended {ended_count} leftover processes of a killed run" if ended_count else ""
        # An old service answers until its successor starts. Predictions wait in its spool while MariaDB restarts.
        plan.supervisor.ensure(plan.programs, until_start=[program.name for program in plan.select("serve-")])
    return plan


def _start_airflow(plan: Plan, steps: Steps) -> None:
    if components := plan.select("airflow-"):
        with steps.step("Airflow: metadata") as step:
            step.note = "migrated" if airflow_programs.prepare(plan.settings) else "current"
        with steps.step("Airflow: start"):
            plan.supervisor.start([program.name for program in components])
            _wait_healthy(components, plan)
    else:
        with steps.step("Airflow: yours") as step:
            step.note = plan.settings.airflow_base_url
            Airflow(plan.settings).wait_healthy(patience=TEAM_AIRFLOW_PATIENCE)


def _start_data(plan: Plan, steps: Steps) -> None:
    """Start MariaDB, create its users, tables and data, then start MLflow and the services, which need MariaDB."""
    settings = plan.settings
    _start_mariadb(plan, steps)
    with steps.step("databases and tables") as step:
        from db.admin import bootstrap

        bootstrap.create_databases_and_users(settings)
        plan.supervisor.start([program.name for program in plan.select("mlflow")])  # creates its tables in parallel
        step.note = ", ".join(bootstrap.migrate(settings, [spec.store for spec in plan.specs])) or "current"
    load_examples(settings, plan.specs, steps)
    with steps.step("MLflow") as step:
        step.note = settings.mlflow_tracking_url
        if mlflow := plan.select("mlflow"):
            _wait_healthy(mlflow, plan)
        elif not answers(f"{settings.mlflow_tracking_url}/health"):
            raise Unreachable(service="MLflow", address=settings.mlflow_tracking_url)
    with steps.step("prediction services") as step:
        services = plan.select("serve-")
        plan.supervisor.start([program.name for program in services])
        _wait_healthy(services, plan)
        step.note = ", ".join(program.url for program in services)


def _start_mariadb(plan: Plan, steps: Steps) -> None:
    if plan.settings.mariadb_host:
        return
    with steps.step("MariaDB") as step:
        is_new = start_mariadb(plan.settings, plan.supervisor)
        step.note = plan.settings.mariadb_address + (", new data folder" if is_new else "")


def start_mariadb(settings: Settings, supervisor: Supervisor) -> bool:
    """Start the private MariaDB if it is stopped, and wait until it answers. Return True if its data folder is new."""
    is_new = False
    if supervisor.states()["mariadb"].state in STOPPED:
        is_new = mariadb.initialise(mariadb.data_folder(settings), root_password=settings.db_password("root"))
        supervisor.start(["mariadb"])
    wait_for_programs(["mariadb"], lambda _: mariadb.root_signs_in(settings), supervisor)
    return is_new


def load_examples(settings: Settings, specs: Iterable[ModelSpec], steps: Steps) -> None:
    """Load the example data of every model that has example data and no rows. Raises: Unreachable, AccessDenied."""
    from db.store.loads import latest_commit_seq
    from stack.example_data.load_example import load_example
    from stack.example_data.worlds import GENERATORS

    for spec in specs:
        if spec.name not in GENERATORS or latest_commit_seq(settings, spec.name):
            continue
        with steps.step(f"example data {spec.name}") as step:
            report = load_example(spec=spec, settings=settings, now=utc_now())
            step.note = f"{report.labels_added:,} labels"


def begin_models(settings: Settings, specs: Sequence[ModelSpec], steps: Steps, *, begun: float) -> None:
    """Set up Airflow's connections and DAGs, and train every model without a version.

    `begun`: Unix time from which the time to each model's first answer counts.
    Raises: StackError, Unreachable, AccessDenied, NotFound.
    """
    _connect_airflow(settings, specs, steps)
    train_first(settings, specs, steps, begun=begun)


def _connect_airflow(settings: Settings, specs: Sequence[ModelSpec], steps: Steps) -> None:
    """Create the connections to the store. Then unpause the DAGs, first those that receive events of the others."""
    airflow = Airflow(settings)
    with steps.step("Airflow: connections, DAGs") as step:
        airflow.upsert_connection()
        airflow.upsert_connection(READER_CONNECTION, "reader")  # for users' queries in batch scoring
        airflow.upsert_connection(MAINTENANCE_CONNECTION, "maintenance")  # for partitions and retention
        if any(spec.source.query for spec in specs):  # only tasks that load a query write to the store
            airflow.upsert_connection(LOADER_CONNECTION, "loader")
        required = [*(f"{spec.name}_{kind}" for kind in CONSUMERS_FIRST for spec in specs), "maintenance"]
        for dag_id in required:
            airflow.wait_for_dag(dag_id)
        dag_ids = airflow.dag_ids()
        for dag_id in [name for name in required if name in dag_ids]:
            airflow.unpause(dag_id)
        step.note = f"{len(dag_ids)} DAGs"


def _await_versions(plan: Plan, steps: Steps) -> None:
    """Wait until the services on this machine have fetched the deployed versions."""
    urls = {program.name: program.url for program in plan.select("serve-")}
    live_services = [name for name in urls if is_live(plan.settings, name.removeprefix("serve-"))]
    if not all(is_ready(urls[name]) for name in live_services):
        with steps.step("deployed versions") as step:
            try:
                wait_for_programs(live_services, lambda name: is_ready(urls[name]), plan.supervisor)
                step.note = "fetched"
            except StackError as error:  # a service may fetch its version later, and the rest of the stack works
                step.note = f"not yet: {error}"


def _wait_healthy(unready: list[Program], plan: Plan) -> None:
    by_name = {program.name: program for program in unready}
    wait_for_programs(by_name, lambda name: is_healthy(by_name[name], plan.settings), plan.supervisor)
