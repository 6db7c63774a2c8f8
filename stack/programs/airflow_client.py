"""A client of Airflow's REST API, for the private Airflow and for a team's own Airflow."""

from typing import Any
from urllib.parse import quote

import requests

from utils.errors import AccessDenied, EvergreenError, GaveUp, NotFound, SettingMissing, Unreachable
from utils.patience import Patience
from utils.settings import STORE_DB, Role, Settings

AIRFLOW_SECONDS = 30.0  # timeout of a request; it is long because Airflow's SQLite allows one writer at a time
DAG_PATIENCE = 180.0  # seconds without a new DAG; Airflow scans the folder every 20 s and parses a file for 20 s
CONNECTION, LOADER_CONNECTION, READER_CONNECTION = "feature_store", "feature_loader", "feature_reader"
MAINTENANCE_CONNECTION = "feature_maintenance"
PARTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")


class Airflow:
    """A client of one Airflow. It signs in at its first call.

    Every method raises Unreachable, AccessDenied, or NotFound on a 404.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.airflow_base_url
        self._http = requests.Session()

    def health(self) -> dict[str, str]:
        """The status of each part in `PARTS`: `healthy` or `unhealthy`. A part that does not run is absent."""
        status = self._send("GET", "/api/v2/monitor/health").json()
        return {part: status[part]["status"] for part in PARTS if (status.get(part) or {}).get("status")}

    def wait_healthy(self, *, patience: float) -> None:
        """Wait until every part is healthy.

        Raises: Unreachable if the set of unhealthy parts does not change for `patience` seconds.
        """

        def problem() -> str:
            try:
                status = self.health()
            except Unreachable:
                return "no answer yet"
            missing = ", ".join(part for part in PARTS if status.get(part) != "healthy")
            return missing and f"not healthy: {missing}"

        try:
            Patience("Airflow", problem, seconds=patience).until(lambda: not problem(), every=0.3)
        except GaveUp:
            raise Unreachable(service="Airflow", address=self._url, reason=problem()) from None

    def has_dag(self, dag_id: str) -> bool:
        try:
            self._api("GET", f"dags/{_quote(dag_id)}")
        except NotFound:
            return False
        return True

    def wait_for_dag(self, dag_id: str) -> None:
        """Wait until the DAG processor has found `dag_id`.

        Raises: NotFound, with the import error if there is one.
        """

        def is_parsed() -> bool:
            if self.has_dag(dag_id):
                return True
            for import_error in self.import_errors():
                raise NotFound(what=f"DAG {dag_id}", where=f"Airflow at {self._url}", hint=import_error)
            return False

        try:
            Patience(f"DAG {dag_id}", self.dag_ids, seconds=DAG_PATIENCE).until(is_parsed, every=0.3)
        except GaveUp:
            hint = "is dags/ of this checkout Airflow's DAG folder?"
            raise NotFound(what=f"DAG {dag_id}", where=f"Airflow at {self._url}", hint=hint) from None

    def import_errors(self) -> list[str]:
        """The import errors, one line per file: the file and the last line of its traceback."""
        errors = self._api("GET", "importErrors")["import_errors"]
        return [f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors]

    def dag_ids(self) -> set[str]:
        """The ids of all DAGs in Airflow that are not stale."""
        ids: set[str] = set()
        while page := self._api("GET", "dags", query={"limit": 100, "offset": len(ids), "order_by": "dag_id"})["dags"]:
            ids |= {dag["dag_id"] for dag in page}
            if len(page) < 100:
                break
        return ids

    def url_of(self, dag_id: str, run_id: str = "") -> str:
        """The address of the page of a DAG or of one of its runs."""
        return f"{self._url}/dags/{_quote(dag_id)}" + (f"/runs/{_quote(run_id)}" if run_id else "")

    def unpause(self, dag_id: str) -> None:
        self._api("PATCH", f"dags/{_quote(dag_id)}", {"is_paused": False}, query={"update_mask": "is_paused"})

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run now and return its id."""
        run = self._api("POST", f"dags/{_quote(dag_id)}/dagRuns", {"logical_date": None, "conf": conf})
        return str(run["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Airflow's description of a run. Its `state` is queued, running, success or failed."""
        return self._api("GET", f"dags/{_quote(dag_id)}/dagRuns/{_quote(run_id)}")

    def runs(self, dag_id: str, *, states: tuple[str, ...] = (), limit: int = 5) -> list[dict[str, Any]]:
        """The newest runs, newest first. If `states` is not empty, only runs in these states."""
        query = {"order_by": "-run_after", "limit": limit, "state": list(states)}
        dag_runs: list[dict[str, Any]] = self._api("GET", f"dags/{_quote(dag_id)}/dagRuns", query=query)["dag_runs"]
        return dag_runs

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Airflow's descriptions of the task instances of a run, in the order of their start."""
        path = f"dags/{_quote(dag_id)}/dagRuns/{_quote(run_id)}/taskInstances"
        instances: list[dict[str, Any]] = self._api("GET", path, query={"limit": 100})["task_instances"]
        return sorted(instances, key=lambda task: task["start_date"] or "9")

    def count_tasks(self, dag_id: str, states: tuple[str, ...]) -> int:
        """The number of task instances in `states`, over all runs of `dag_id`. `~` means all DAGs."""
        path = f"dags/{_quote(dag_id)}/dagRuns/~/taskInstances"
        return int(self._api("GET", path, query={"limit": 1, "state": list(states)})["total_entries"])

    def last_error(self, dag_id: str, run_id: str, task_id: str, attempt: int) -> str:
        """The last error in the log of one attempt of a task, as one line. Empty if there is no error."""
        path = f"dags/{_quote(dag_id)}/dagRuns/{_quote(run_id)}/taskInstances/{_quote(task_id)}/logs/{attempt}"
        lines = [line for line in self._api("GET", path)["content"] if isinstance(line, dict)]
        for line in reversed(lines):
            for exception in line.get("error_detail") or ():
                return f"{exception['exc_type']}: {exception['exc_value']}"
        errors = [str(line["event"]) for line in lines if line.get("level") in {"error", "critical"}]
        return errors[-1] if errors else ""

    def upsert_connection(self, connection_id: str = CONNECTION, role: Role = "pipeline") -> bool:
        """Create or update a connection to the feature store, as the user of `role`. Return True if it was created."""
        host, port = self._settings.mariadb_host or "127.0.0.1", self._settings.mariadb_port
        connection = {
            "connection_id": connection_id,
            "conn_type": "mysql",
            "description": f"Feature store of Evergreen, as {self._settings.db_user(role)}",
            "host": host,
            "port": port,
            "login": self._settings.db_user(role),
            "password": self._settings.db_password(role),
            "schema": STORE_DB,
        }
        try:
            self._api("PATCH", f"connections/{_quote(connection_id)}", connection)
        except NotFound:
            self._api("POST", "connections", connection)
            return True
        return False

    def _api(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, query: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        if "Authorization" not in self._http.headers:
            self._sign_in()
        # Without this header Airflow returns a log as text, not as JSON lines.
        headers = {"Accept": "application/json"}
        response = self._send(method, f"/api/v2/{path}", json=body, params=query, headers=headers)
        content: dict[str, Any] = response.json() if response.content else {}
        return content

    def _sign_in(self) -> None:
        user, password = self._settings.airflow_user, self._settings.airflow_password.get_secret_value()
        if not password:
            raise SettingMissing(variable="EVERGREEN_AIRFLOW_PASSWORD", needed_for="signing in to Airflow")
        response = self._send("POST", "/auth/token", json={"username": user, "password": password})
        self._http.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            response = self._http.request(method, self._url + path, timeout=AIRFLOW_SECONDS, **options)
        except requests.RequestException as error:
            reason = type(error).__name__
            raise Unreachable(service="Airflow", address=self._url, reason=reason) from None
        if response.ok:
            return response
        if response.status_code in {401, 403}:
            raise AccessDenied(service="Airflow", address=self._url, user=self._settings.airflow_user)
        if response.status_code == 404:
            raise NotFound(what=path.removeprefix("/api/v2/"), where=f"Airflow at {self._url}")
        if response.status_code >= 500:
            raise Unreachable(service="Airflow", address=self._url, reason=f"it answered {response.status_code}")
        raise EvergreenError(f"Airflow refuses {method} {path} ({response.status_code}): {_error_detail(response)}")


def _quote(name: str) -> str:
    """Quote `name` as one segment of a path. Run ids contain colons and plus signs."""
    return quote(name, safe="")


def _error_detail(response: requests.Response) -> str:
    try:
        return str(response.json()["detail"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]
