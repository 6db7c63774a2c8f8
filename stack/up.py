"""`up`: from a checkout to a stack that answers. Every step looks first and changes only what is missing."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from pipelines.spec import ModelSpec, load_spec, model_names
from stack.first_training import is_live, train_first
from stack.programs import airflow_programs, mariadb, ports, secrets
from stack.programs.airflow_client import LOADER_CONNECTION, MAINTENANCE_CONNECTION, READER_CONNECTION, Airflow
from stack.programs.health import answers, healthy
from stack.programs.lock import exclusive
from stack.programs.program import Program
from stack.programs.program_list import programs
from stack.programs.starting import wait_for_programs
from stack.programs.supervisor import STOPPED, Supervisor
from stack.progress import Steps
from stack.summary import farewell, is_ready
from utils.clock import utc_now
from utils.errors import StackError, Unreachable
from utils.settings import Settings

YOURS = 10.0  # seconds without a change in how a team's own Airflow is, which should be up
CONSUMERS_FIRST = ("deployment", "training", "monitoring", "scoring")  # an event for a paused DAG is lost


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stack on this machine consists of."""

    settings: Settings
    specs: tuple[ModelSpec, ...]
    programs: tuple[Program, ...]
    supervisor: Supervisor

    def named(self, prefix: str) -> list[Program]:
        return [program for program in self.programs if program.name.startswith(prefix)]


def up(settings: Settings, *, console: Console, since: float | None = None) -> Settings:
    """Bring everything up, train and deploy the models that have no version yet, and say how to use it.

    `since`: Unix time at which the user began, to be counted into the total; default now. Returns the settings with
    the secrets that were made.

    Raises: StackError, SpecInvalid, Unreachable, AccessDenied, DeploymentFailed; what runs by then keeps running.
    """
    begun = since or time.time()
    specs = tuple(load_spec(settings.models_dir / f"{name}.yaml") for name in model_names(settings.models_dir))
    with exclusive(settings), Steps(console) as steps:
        with steps.step("secrets") as step:
            settings, written = secrets.ensure(settings)
            step.note = f"{len(written)} written to {settings.env_file}" if written else "kept"
        plan = _supervise(settings, specs, steps)
        with ThreadPoolExecutor(1) as beside:  # Airflow takes longest and needs nothing of the others
            airflow = beside.submit(_start_airflow, plan, steps)
            _start_data(plan, steps)
            airflow.result()
        begin_models(settings, specs, steps, begun=begun)
        _await_versions(plan, steps)
    farewell(settings, specs, console, begun=begun)
    return settings


def _supervise(settings: Settings, specs: tuple[ModelSpec, ...], steps: Steps) -> Plan:
    with steps.step("ports and supervisor") as step:
        plan = Plan(settings, specs, tuple(programs(settings)), Supervisor(settings))
        if plan.supervisor.running:
            ports.check(plan.programs, settings)
        else:
            cleared = plan.supervisor.clear_leftovers()
            ports.check(plan.programs, settings)
            step.note = f"ended {cleared} leftover processes of a killed run" if cleared else ""
        # A service answers until its successor is to start: meanwhile it keeps in its spool what MariaDB can't take.
        plan.supervisor.ensure(plan.programs, until_start=[program.name for program in plan.named("serve-")])
    return plan


def _start_airflow(plan: Plan, steps: Steps) -> None:
    if own := plan.named("airflow-"):
        with steps.step("Airflow: metadata") as step:
            step.note = "migrated" if airflow_programs.prepare(plan.settings) else "current"
        with steps.step("Airflow: start"):
            plan.supervisor.start([program.name for program in own])
            _wait_healthy(own, plan)
    else:
        with steps.step("Airflow: yours") as step:
            step.note = plan.settings.airflow_base_url
            Airflow(plan.settings).wait_healthy(patience=YOURS)


def _start_data(plan: Plan, steps: Steps) -> None:
    """MariaDB with users, tables and data; MLflow and the services on top of it."""
    settings = plan.settings
    _start_mariadb(plan, steps)
    with steps.step("databases and tables") as step:
        from db.admin import bootstrap

        bootstrap.create_databases_and_users(settings)
        plan.supervisor.start([program.name for program in plan.named("mlflow")])  # makes its own tables meanwhile
        step.note = ", ".join(bootstrap.migrate(settings, [spec.store for spec in plan.specs])) or "current"
    load_examples(settings, plan.specs, steps)
    with steps.step("MLflow") as step:
        step.note = settings.mlflow_tracking_url
        if own := plan.named("mlflow"):
            _wait_healthy(own, plan)
        elif not answers(f"{settings.mlflow_tracking_url}/health"):
            raise Unreachable(service="MLflow", address=settings.mlflow_tracking_url)
    with steps.step("prediction services") as step:
        services = plan.named("serve-")
        plan.supervisor.start([program.name for program in services])
        _wait_healthy(services, plan)
        step.note = ", ".join(program.url for program in services)


def _start_mariadb(plan: Plan, steps: Steps) -> None:
    if plan.settings.mariadb_host:
        return
    with steps.step("MariaDB") as step:
        made = start_mariadb(plan.settings, plan.supervisor)
        step.note = plan.settings.mariadb_address + (", new data folder" if made else "")


def start_mariadb(settings: Settings, supervisor: Supervisor) -> bool:
    """Return once the private MariaDB answers; True where its data folder was made now."""
    made = False
    if supervisor.states()["mariadb"].state in STOPPED:
        made = mariadb.initialise(mariadb.data_folder(settings), root_password=settings.db_password("root"))
        supervisor.start(["mariadb"])
    wait_for_programs(["mariadb"], lambda _: mariadb.root_signs_in(settings), supervisor)
    return made


def load_examples(settings: Settings, specs: Iterable[ModelSpec], steps: Steps) -> None:
    """The example world of every model that has one and no data yet. Raises: Unreachable, AccessDenied."""
    from db.store.loads import latest_commit_seq
    from stack.example_data.load_example import load_example
    from stack.example_data.worlds import WORLDS

    for spec in specs:
        if spec.name not in WORLDS or latest_commit_seq(settings, spec.name):
            continue
        with steps.step(f"example data {spec.name}") as step:
            report = load_example(spec=spec, settings=settings, now=utc_now())
            step.note = f"{report.labels_added:,} labels"


def begin_models(settings: Settings, specs: Sequence[ModelSpec], steps: Steps, *, begun: float) -> None:
    """Let Airflow work: connections, DAGs, and a first training of every model that has no version yet.

    `begun`: Unix time that the time to each model's first answer is counted from.
    Raises: StackError, Unreachable, AccessDenied, NotFound.
    """
    _wire_airflow(settings, specs, steps)
    train_first(settings, specs, steps, begun=begun)


def _wire_airflow(settings: Settings, specs: Sequence[ModelSpec], steps: Steps) -> None:
    """The connections that tasks read the store with; then every DAG unpaused, consumers before producers."""
    airflow = Airflow(settings)
    with steps.step("Airflow: connections, DAGs") as step:
        airflow.upsert_connection()
        airflow.upsert_connection(READER_CONNECTION, "reader")  # queries that people give a scoring
        airflow.upsert_connection(MAINTENANCE_CONNECTION, "maintenance")  # partitions, retention
        if any(spec.source.query for spec in specs):  # nobody else in Airflow needs to write to the store
            airflow.upsert_connection(LOADER_CONNECTION, "loader")
        required = [*(f"{spec.name}_{kind}" for kind in CONSUMERS_FIRST for spec in specs), "maintenance"]
        for dag_id in required:
            airflow.wait_for_dag(dag_id)
        found = airflow.dag_ids()
        for dag_id in [name for name in required if name in found]:
            airflow.unpause(dag_id)
        step.note = f"{len(found)} DAGs"


def _await_versions(plan: Plan, steps: Steps) -> None:
    """A service that is new on this machine fetches what was deployed before."""
    urls = {program.name: program.url for program in plan.named("serve-")}
    live = [name for name in urls if is_live(plan.settings, name.removeprefix("serve-"))]
    if not all(is_ready(urls[name]) for name in live):
        with steps.step("deployed versions") as step:
            try:
                wait_for_programs(live, lambda name: is_ready(urls[name]), plan.supervisor)
                step.note = "fetched"
            except StackError as error:  # it may come later, and the rest of the stack works
                step.note = f"not yet: {error}"


def _wait_healthy(waiting: list[Program], plan: Plan) -> None:
    known = {program.name: program for program in waiting}
    wait_for_programs(known, lambda name: healthy(known[name], plan.settings), plan.supervisor)
