"""The checks of `make compose-check NAME=profiles`, one per profile of docker-compose.yaml."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import requests
import yaml
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from api.requests.row_type import example
from db.session import session
from deploy.compose_stack import ComposeStack
from deploy.compose_traffic import Target, UnretriedTraffic
from deploy.dashboards import Query, queries
from pipelines.spec import find_spec
from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import end_of, patience
from utils.patience import Patience
from utils.settings import OPTUNA_DB

PROFILE_NAMES = ("monitoring", "load", "replicas", "scale")
MODEL, SEARCH_MODEL = "churn", "credit_score"
TRIALS = 16  # of one search


def require_success(airflow: Airflow, dag_id: str, run_id: str) -> None:
    """Wait for the end of a run. Raises: RuntimeError if the run fails; GaveUp."""
    if end_of(airflow, dag_id, run_id) != "success":
        failed_tasks = [task["task_id"] for task in airflow.tasks(dag_id, run_id) if task["state"] == "failed"]
        raise RuntimeError(f"{dag_id} failed at {', '.join(failed_tasks)}")


# --- profile monitoring --------------------------------------------------------------------------------------------


def check_monitoring(stack: ComposeStack) -> str:
    """Run the tests of the alert rules. Run every query of the dashboards on its data source."""
    stack.compose("up", "-d", "prometheus", profiles=["monitoring"])
    stack.wait_until_ready(["prometheus"])
    [prometheus] = stack.containers("prometheus")
    stack.docker("exec", prometheus, "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    stack.docker("exec", prometheus, "promtool", "test", "rules", "/etc/prometheus/rules_test.yml")
    spec = find_spec(stack.models, MODEL)
    target = Target(stack.url(MODEL), example(spec), spec.entity)
    url = f"http://127.0.0.1:{stack.ports['PROMETHEUS']}"
    service_count = sum(name.startswith("serve-") for name in stack.default_services)
    panel_queries = queries()

    def missing_data() -> list[str]:
        up = _query_prometheus(url, 'sum(up{job="services"})')
        up_count = int(up[0]["value"][1]) if up else 0
        empty_queries = [
            f"{query.panel}: {query.promql}"
            for query in panel_queries
            if query.promql and not _query_prometheus(url, query.promql)
        ]
        return ([] if up_count == service_count else [f"{up_count} of {service_count} services are up"]) + empty_queries

    with UnretriedTraffic([target], stack.settings.api_key.get_secret_value(), rate=10):
        Patience("what Prometheus is asked to find", missing_data, seconds=120).until(
            lambda: not missing_data(), every=1
        )
    with_rows = sum(not query.sql or _has_rows(stack, query) for query in panel_queries)
    return f"rules pass, {service_count} services up, {len(panel_queries)} dashboard queries, {with_rows} with rows"


def _has_rows(stack: ComposeStack, query: Query) -> bool:
    """Whether MariaDB returns rows for `query`. Raises: Unreachable, DBAPIError."""
    with session(stack.settings, "reader") as connection:
        return bool(connection.exec_driver_sql(query.sql.replace("%", "%%")).all())


def _query_prometheus(url: str, query: str) -> list[dict[str, Any]]:
    response = requests.get(f"{url}/api/v1/query", params={"query": query}, timeout=10)
    response.raise_for_status()
    series: list[dict[str, Any]] = response.json()["data"]["result"]
    return series


# --- profile load --------------------------------------------------------------------------------------------------


def check_load(stack: ComposeStack) -> str:
    """Start ten users for ten seconds on locust's page. Raises: RuntimeError if a request fails or none is sent."""
    stack.compose("up", "-d", "--build", "locust", profiles=["load"])
    url = f"http://127.0.0.1:{stack.ports['LOCUST']}"
    stack.wait_until_ready(["locust"])
    form = {"user_count": 10, "spawn_rate": 10, "host": f"http://serve-{MODEL}:3000"}
    requests.post(f"{url}/swarm", data=form, timeout=10).raise_for_status()
    time.sleep(10)
    requests.post(f"{url}/stop", timeout=10).raise_for_status()
    [total] = [
        entry
        for entry in requests.get(f"{url}/stats/requests", timeout=10).json()["stats"]
        if entry["name"] == "Aggregated"
    ]
    if total["num_failures"] or not total["num_requests"]:
        raise RuntimeError(f"{total['num_failures']} of {total['num_requests']} requests of locust failed")
    return f"{total['num_requests']:,} requests of locust's users, none failed"


# --- profile replicas ----------------------------------------------------------------------------------------------


def check_replicas(stack: ComposeStack) -> str:
    """Swap the version, replace both containers in sequence, and crash each of them, while requests are sent.

    No request may fail. Each request must be in the log once, even if it was sent to both replicas.
    """
    replica_names = ["serve-churn", "serve-churn-2"]
    stack.compose("up", "-d", "--build", *replica_names, "balancer", profiles=["replicas"])
    stack.wait_until_ready([*replica_names, "balancer"])

    def swap() -> None:
        for version in ("1", "2"):
            command = ["evergreen", "deploy", MODEL, version, "--reason", "compose-check"]
            stack.compose("run", "--rm", "--no-deps", "-T", "begin", *command)

    def replace() -> None:
        for name in replica_names:
            stack.compose("up", "-d", "--no-deps", "--force-recreate", name, profiles=["replicas"])
            stack.wait_until_ready([name])

    def crash() -> None:
        for name in replica_names:
            stack.crash(stack.containers(name)[0])
            stack.wait_until_ready([name])

    results = [
        f"{title}: {_require_no_failure(stack, action)}"
        for title, action in (("swapped twice", swap), ("both replaced", replace), ("each crashed once", crash))
    ]
    return "; ".join(results)


def _require_no_failure(stack: ComposeStack, action: Callable[[], None]) -> str:
    """Send requests while `action` runs. Raises: RuntimeError if a request fails, is not logged, or is logged twice."""
    spec = find_spec(stack.models, MODEL)
    target = Target(f"http://127.0.0.1:{stack.ports['BALANCER']}", example(spec), spec.entity)
    with UnretriedTraffic([target], stack.settings.api_key.get_secret_value(), rate=50) as traffic:
        action()
    outcome = traffic.compare_with_log(stack.settings)
    if outcome.failed or outcome.lost or outcome.twice:
        raise RuntimeError(f"{action.__name__}: {outcome}: {outcome.errors}")
    return str(outcome)


# --- profile scale -------------------------------------------------------------------------------------------------


def check_scale(stack: ComposeStack, console: Console) -> str:
    """Run a search of 16 trials three times: with one worker, with two workers, and with one of two workers killed."""
    _let_trials_end_the_search(stack)
    table = Table(title=f"one search of {TRIALS} trials, one processor per worker")
    for heading in ("workers", "seconds", "complete trials", "repeated trials"):
        table.add_column(heading)
    seconds = {}
    for workers, kill in ((1, False), (2, False), (2, True)):
        title = f"{workers}, one killed" if kill else str(workers)
        scale_option = ("--scale", f"airflow-worker={workers}")
        variables = {"EVERGREEN_EXECUTOR": "CeleryExecutor", "EVERGREEN_SEARCH_TASKS": "2"}
        stack.compose("up", "-d", *scale_option, profiles=["scale"], **variables)
        stack.wait_until_ready([*stack.default_services, "redis", "airflow-worker"])
        seconds[title], complete_count, repeated_count = _search(stack, kill=kill)
        table.add_row(title, f"{seconds[title]:.0f}", str(complete_count), str(repeated_count))
        if complete_count != TRIALS or repeated_count:
            raise RuntimeError(
                f"{title} workers: {complete_count} complete trials, {repeated_count} with the same parameters"
            )
    console.print(table)
    return ", ".join(f"{title}: {duration:.0f} s" for title, duration in seconds.items())


def _let_trials_end_the_search(stack: ComposeStack) -> None:
    """Raise the time limit of the search, so that its number of trials ends it. Reduce the rows to shorten a trial."""
    file = stack.models / f"{SEARCH_MODEL}.yaml"
    content = yaml.safe_load(file.read_text())
    content["training"] |= {"window": "75d"}
    content["training"]["search"] |= {"timeout": "30m"}
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def _search(stack: ComposeStack, *, kill: bool) -> tuple[float, int, int]:
    """Run a search. Return its duration in seconds, its number of complete trials, and how many repeat parameters."""
    airflow, dag_id = Airflow(stack.settings), f"{SEARCH_MODEL}_training"
    run_id = airflow.trigger(dag_id, {"reason": "compose-check", "trials": TRIALS})
    if kill:
        trial_patience = patience(airflow, f"{TRIALS // 4} trials", dag_id)
        trial_patience.until(lambda: len(_read_trials(stack, f"{dag_id}/{run_id}")) >= TRIALS // 4)
        stack.crash(stack.containers("airflow-worker")[0])
    require_success(airflow, dag_id, run_id)
    tasks = [task for task in airflow.tasks(dag_id, run_id) if task["task_id"] in {"explore", "search"}]
    start, end = min(task["start_date"] for task in tasks), max(task["end_date"] for task in tasks)
    trials = _read_trials(stack, f"{dag_id}/{run_id}")
    duration = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    return duration.total_seconds(), len(trials), len(trials) - len(set(trials))


def _read_trials(stack: ComposeStack, run_id: str) -> list[str]:
    """Return the parameters of each complete trial."""
    query = (
        "SELECT GROUP_CONCAT(p.param_name, '=', p.param_value ORDER BY 1) FROM studies s JOIN trials t USING (study_id)"
        " JOIN trial_params p USING (trial_id) WHERE s.study_name = :run AND t.state = 'COMPLETE' GROUP BY t.trial_id"
    )
    with session(stack.settings, "pipeline", OPTUNA_DB) as connection:
        return [str(row[0]) for row in connection.execute(text(query), {"run": run_id})]
