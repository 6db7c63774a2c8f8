"""The prediction service without MariaDB or MLflow, and how it downloads a version from MLflow."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from api.versions.bento_store import BentoStore
from db import history
from db.history import deployments
from db.history.heartbeats import Deployment
from db.session import session
from db.tables import deployment
from pipelines import registry
from pipelines.artifact.bundle_files import bundle_hash
from stack.programs.program import settings_environment
from tests.bundles import write_bundle
from tests.integration.conftest import put_into_service
from tests.servers import free_port
from tests.services import make_service, own_mariadb, spec_like_credit_score, wait_for
from utils.clock import utc_now
from utils.errors import NotFound, Unreachable
from utils.settings import inherited_environment


@pytest.fixture(scope="module")
def server(credit_score):
    with own_mariadb([credit_score.store]) as own_server:
        yield own_server


def wait_until_all_logged(service, answers):
    """Wait until every answer is in the log, exactly once and without extra rows. Every answer must be a 200."""
    assert {answer.status_code for answer in answers} == {200}
    ids = [answer.json()["prediction_id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    wait_for("the spools to be empty", lambda: set(ids) <= service.logged().keys())
    assert len(service.logged()) == len(ids)


@contextmanager
def predictions_in_background(service, answers, *, clients=8):
    """Send predictions from `clients` threads during the block, and append each response to `answers`."""
    stop = threading.Event()

    def keep_predicting():
        while not stop.is_set():
            with suppress(requests.ConnectionError):  # the worker of this connection was killed
                answers.append(service.predict())
            time.sleep(0.005)

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(keep_predicting) for _ in range(clients)]
        try:
            yield
        finally:
            stop.set()
        for future in futures:
            future.result()


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_while_mariadb_is_away_every_request_is_answered_and_logged_when_it_is_back(server, tmp_path, away):
    service = make_service(server.settings, tmp_path, f"serve_{away}", workers=2)
    service.deploy(1, service.store(1))
    answers: list[requests.Response] = []
    leave, restore = (server.stop, server.start) if away == "stopped" else (server.freeze, server.thaw)
    with service.running():
        wait_for("both workers", lambda: [worker["version"] for worker in service.workers()] == [1, 1])
        with predictions_in_background(service, answers):
            wait_for("answers", lambda: len(answers) > 100)
            leave()
            try:
                number_before = len(answers)
                wait_for("answers without MariaDB", lambda: len(answers) > number_before + 300)
                assert service.is_ready()
            finally:
                restore()
            number_before = len(answers)
            wait_for("answers again", lambda: len(answers) > number_before + 100)
        wait_until_all_logged(service, answers)


def test_the_other_worker_logs_the_spooled_rows_of_a_killed_worker(server, tmp_path):
    service = make_service(server.settings, tmp_path, "serve_killed", workers=2)
    service.deploy(1, service.store(1))
    answers: list[requests.Response] = []
    with service.running():
        wait_for("both workers", lambda: len(service.workers()) == 2)
        pids = {worker["pid"] for worker in service.workers()}
        with predictions_in_background(service, answers):
            server.stop()
            try:
                wait_for("both spools", lambda: len(list(service.settings.spool.glob("*/*.db"))) == 2)
                number_before = len(answers)
                wait_for("answers from the spools", lambda: len(answers) > number_before + 200)
                os.kill(min(pids), signal.SIGKILL)
                number_before = len(answers)
                wait_for("more answers", lambda: len(answers) > number_before + 200)
            finally:
                server.start()
        ids = {answer.json()["prediction_id"] for answer in answers if answer.status_code == 200}
        wait_for("every row", lambda: ids <= service.logged().keys())


def test_rows_in_the_spool_when_the_service_stops_are_logged_after_its_next_start(server, tmp_path):
    service = make_service(server.settings, tmp_path, "serve_again")
    service.deploy(1, service.store(1))
    with service.running():
        wait_for("the heartbeat", service.workers)
        server.stop()
        ids = {service.predict().json()["prediction_id"] for _ in range(20)}
    assert list(service.settings.spool.glob("*/*.db"))  # MariaDB was away until the end
    server.start()
    assert not ids & service.logged().keys()
    with service.running():
        wait_for("every row", lambda: ids <= service.logged().keys())
        wait_for("its removal", lambda: not list(service.settings.spool.glob("*/*.db")))


def test_the_service_starts_ready_from_its_own_disk_without_mariadb_and_mlflow(server, tmp_path):
    service = make_service(server.settings, tmp_path, "serve_alone")
    service.deploy(1, service.store(1))
    with service.running():
        wait_for("the heartbeat", service.workers)
    server.stop()
    try:
        with service.running():
            assert service.post("/metadata", {}).json()["version"] == 1
            answer = service.predict()
            assert answer.status_code == 200
            server.start()
            wait_for("its row", lambda: answer.json()["prediction_id"] in service.logged())
    finally:
        if server.process.poll() is not None:
            server.start()


def pull(settings, model, version):
    environment = {**inherited_environment(), **settings_environment(settings, secrets=("db_api_password",))}
    command = [sys.executable, "-m", "api.versions.download", model, str(version)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_version_is_pulled_once_served_and_repaired_when_damaged(mlflow_settings, tmp_path):
    service = make_service(mlflow_settings, tmp_path, "serve_pull", mlflow_port=mlflow_settings.mlflow_port)
    settings, name = service.settings, service.spec.name
    folder = tmp_path / "bundle"
    sha256 = write_bundle(service.spec, folder)
    mlflow = MlflowClient(settings.mlflow_tracking_url, settings.mlflow_tracking_url)
    run = mlflow.create_run(mlflow.create_experiment(name))
    labels: dict[str, Any] = {"tags": {"run_id": "run-7"}, "description": "a test"}
    version = registry.register(settings, model=name, mlflow_run_id=run.info.run_id, folder=folder, **labels)
    service.deploy(version, sha256)
    with service.running():
        metadata = service.post("/metadata", {}).json()
        assert (metadata["version"], metadata["sha256"], metadata["run_id"]) == (version, sha256, "run-7")
        assert service.predict().status_code == 200
    folder_in_store = service.bento_store.folder(version)
    assert folder_in_store is not None
    changed_before = (folder_in_store / "model.cb").stat().st_mtime_ns
    assert pull(settings, name, version).returncode == 0
    assert (folder_in_store / "model.cb").stat().st_mtime_ns == changed_before
    (folder_in_store / "model.cb").write_bytes(b"damaged")
    assert pull(settings, name, version).returncode == 0
    assert bundle_hash(folder_in_store) == sha256


def test_a_pull_removes_versions_that_neither_serve_nor_are_needed_for_a_rollback(mlflow_settings, tmp_path):
    service = make_service(mlflow_settings, tmp_path, "serve_tidy", mlflow_port=mlflow_settings.mlflow_port)
    settings, spec, bento_store = service.settings, service.spec, service.bento_store
    hashes = {number: service.store(number) for number in (91, 92, 93)}
    bento_store.set_current(Deployment(92, hashes[92], utc_now()))  # the version that served until now
    version = put_into_service(spec, tmp_path / "bundle", settings=settings, now=utc_now())
    with session(settings, "pipeline") as connection:
        desired = deployments.desired_row(connection, spec.name)
        assert desired is not None
        columns = {name: value for name, value in desired.items() if name != "id"}
        history.add(connection, deployment, {**columns, "previous_version": 93})
    without_mariadb = settings.model_copy(update={"mariadb_port": free_port()})
    assert pull(without_mariadb, spec.name, version).returncode == 0
    assert bento_store.folder(91)  # without MariaDB, a pull does not know which versions are needed
    pulled_folder = bento_store.folder(version)
    assert pulled_folder is not None
    shutil.rmtree(pulled_folder)
    assert pull(settings, spec.name, version).returncode == 0
    assert [number for number in (91, 92, 93, version) if bento_store.folder(number)] == [92, 93, version]


def test_a_pull_of_a_missing_version_or_without_mlflow_ends_with_one_line(mlflow_settings, tmp_path):
    spec_like_credit_score("serve_nothing", tmp_path)
    missing = pull(mlflow_settings.model_copy(update={"home": tmp_path}), "serve_nothing", 3)
    assert missing.returncode == NotFound.exit_code
    assert missing.stderr.count("\n") == 1
    unreachable = pull(mlflow_settings.model_copy(update={"home": tmp_path, "mlflow_port": 1}), "serve_nothing", 3)
    assert unreachable.returncode == Unreachable.exit_code
    assert "MLflow" in unreachable.stderr
    assert BentoStore(mlflow_settings, "serve_nothing").folder(3) is None
