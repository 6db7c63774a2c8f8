"""Version changes and shutdown under traffic, with real BentoML processes, MariaDB and MLflow."""

import http.client
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest
import requests
import yaml
from catboost import sum_models

from db.history import deployments
from db.session import session
from pipelines import registry
from pipelines.artifact.bundle import read_bundle, write_companions
from pipelines.artifact.bundle_files import bundle_hash
from pipelines.deployment import rollout
from pipelines.spec import ModelSpec
from tests.bundles import rows_for, write_bundle
from tests.integration.conftest import put_into_service
from tests.services import make_service, spec_like_credit_score, wait_for
from tests.steady_load import steady_load
from utils.clock import utc_now
from utils.errors import DeploymentFailed


def slow_version(service, version):
    """Store a version whose model sums four thousand copies of version 1's model. Return its SHA-256."""
    spec, folder = service.spec, service.settings.home / "slow"
    single = read_bundle(service.bento_store.folder(1), sha256=bundle_hash(service.bento_store.folder(1))).model
    folder.mkdir()
    model = sum_models([single] * 4000, weights=[1 / 4000] * 4000)
    model.save_model(str(folder / "model.cb"))
    profile = json.loads((service.bento_store.folder(1) / "profile.json").read_text())
    write_companions(folder, model=model, spec=spec, profile=profile, fitted=rows_for(spec, rows=100, seed=1))
    service.bento_store.put(version, folder, tags={})
    return bundle_hash(folder)


def test_a_version_that_is_much_slower_than_the_one_that_serves_is_refused(settings, tmp_path):
    service = make_service(settings, tmp_path, "swap_slow")
    file = yaml.safe_load((service.settings.home / "swap_slow.yaml").read_text())
    columns = file["features"]["columns"]  # models with text features can't be summed
    file["features"]["columns"] = {name: column for name, column in columns.items() if column["type"] == "numeric"}
    service.spec = ModelSpec.parse(file | {"gates": {}}, file="swap_slow.yaml")
    service.deploy(1, service.store(1))
    with service.running():
        wait_for("the first version", lambda: versions(service) == [1])
        service.deploy(2, slow_version(service, 2))
        refusal = wait_for("the refusal", lambda: [w for w in service.workers() if w["refused_version"] == 2])[0]
        assert "too slow to serve" in refusal["refused_reason"]
        assert refusal["version"] == 1
        current = service.bento_store.current()
        assert current is not None
        assert current.version == 1
        assert service.post("/predict", {"data": service.row}).json()["version"] == 1


def versions(service):
    return [worker["version"] for worker in service.workers()]


def test_replacing_two_workers_for_other_requests_loses_no_request(settings, tmp_path):
    service = make_service(settings, tmp_path, "swap_replace", workers=2)
    service.deploy(1, service.store(1))
    with service.running():
        wait_for("both workers", lambda: versions(service) == [1, 1])
        new_spec = spec_like_credit_score("swap_replace", service.settings.home, tenure={"type": "numeric", "min": 0})
        second = service.store(2, spec=new_spec)
        pids_before = {worker["pid"] for worker in service.workers()}
        with steady_load(service) as load:
            load.more(100)
            service.deploy(2, second)
            wait_for("two new workers", lambda: versions(service).count(2) == 2)
            load.more(100)
        assert not pids_before & {worker["pid"] for worker in service.workers() if worker["version"] == 2}
        assert service.predict(tenure=5).json()["version"] == 2
    assert load.failures == []
    assert {status for status, _, _ in load.answers} == {200}
    assert {answer["version"] for _, answer, _ in load.answers} == {1, 2}


def test_a_service_that_shuts_down_answers_every_accepted_request(settings, tmp_path):
    service = make_service(settings, tmp_path, "swap_stop", workers=2)
    service.deploy(1, service.store(1))
    with ExitStack() as after_service, service.running():
        wait_for("both workers", lambda: versions(service) == [1, 1])
        load = after_service.enter_context(steady_load(service, clients=16, pause=0, until_closed=True))
        load.more(200)
    assert load.failures == []
    assert {status for status, _, _ in load.answers} == {200}
    assert {answer["prediction_id"] for _, answer, _ in load.answers} == set(service.logged())


def test_the_reason_of_a_refusal_is_recorded_and_the_previous_version_serves_on(mlflow_settings, tmp_path):
    service = make_service(mlflow_settings, tmp_path, "swap_refused", mlflow_port=mlflow_settings.mlflow_port)
    settings, spec, name = service.settings, service.spec, service.spec.name
    good = put_into_service(spec, tmp_path / "good", settings=settings, now=utc_now())
    with service.running():
        wait_for("the good version", lambda: versions(service) == [good])
        # Registered with golden predictions that its model does not return.
        write_bundle(spec, tmp_path / "bad", seed=2)
        (tmp_path / "bad" / "golden.json").write_bytes((tmp_path / "good" / "golden.json").read_bytes())
        mlflow = registry.client(settings)
        experiment = mlflow.get_experiment_by_name(name)
        assert experiment is not None
        run = mlflow.create_run(experiment.experiment_id).info.run_id
        bad = registry.register(
            settings, model=name, mlflow_run_id=run, folder=tmp_path / "bad", tags={}, description=""
        )
        options: dict[str, Any] = {"model": name, "caused_by": "test/1", "now": utc_now()}
        rollout.roll_out(settings, version=bad, reason="test", **options)
        with pytest.raises(DeploymentFailed, match="golden rows"):
            rollout.wait_until_live(settings, model=name, version=bad, caused_by="test/1")
        assert service.predict().json()["version"] == good
        assert rollout.undo(settings, **options) == good
        rollout.wait_until_live(settings, model=name, version=good, caused_by="test/1")
    rows = service.query("SELECT action, version, reason FROM deployment WHERE model = :model ORDER BY id")
    assert [(row["action"], row["version"]) for row in rows] == [
        ("deploy", good),
        ("deploy", bad),
        ("refused", bad),
        ("failed", bad),
        ("rollback", good),
        ("live", good),
    ]
    assert all("golden rows: expected the recorded predictions" in row["reason"] for row in rows[2:5])
    with session(settings, "pipeline") as connection:
        champion = deployments.champion(connection, name)
    assert champion is not None
    assert champion["version"] == good


def test_a_worker_with_two_end_signals_still_answers_requests_on_its_open_connections(settings, tmp_path):
    service = make_service(settings, tmp_path, "swap_twice")
    service.deploy(1, service.store(1))
    with service.running(), closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)) as client:
        content = json.dumps({"data": service.row})
        for signals in (0, 2):
            for _ in range(signals):
                os.kill(service.workers()[0]["pid"], signal.SIGTERM)
                time.sleep(0.3)
            client.request("POST", "/predict", content, {"Content-Type": "application/json"})
            answer = client.getresponse()
            assert (answer.status, answer.getheader("Connection")) == (200, "close" if signals else None)
            answer.read()


def test_a_new_version_is_swapped_in_under_traffic_and_every_answer_comes_from_the_version_it_names(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_swap", workers=2)
    service.deploy(1, service.store(1, seed=1))
    second = service.store(2, seed=2)
    answers, stop = [], threading.Event()

    def keep_predicting():
        while not stop.is_set():
            answers.append(service.predict())

    with service.running(), ThreadPoolExecutor(8) as clients:
        wait_for("both workers", lambda: [w["version"] for w in service.workers()] == [1, 1])
        pids_before = {worker["pid"] for worker in service.workers()}
        futures = [clients.submit(keep_predicting) for _ in range(8)]
        try:
            wait_for("traffic", lambda: len(answers) > 50)
            service.deploy(2, second)
            wait_for("version 2", lambda: [w["version"] for w in service.workers()] == [2, 2])
            number_before = len(answers)
            wait_for("traffic on version 2", lambda: len(answers) > number_before + 50)
        finally:
            stop.set()
        for future in futures:
            future.result()
        assert {worker["pid"] for worker in service.workers()} == pids_before
    assert {answer.status_code for answer in answers} == {200}
    log_rows = service.logged()
    by_version: dict[int, Any] = {}
    for answer in map(requests.Response.json, answers):
        row = log_rows[answer["prediction_id"]]
        assert (row["version"], row["confidence"]) == (answer["version"], answer["confidence"])
        by_version.setdefault(answer["version"], set()).add(answer["confidence"])
    # All requests have the same row. Each version gives it one score, and the two scores differ.
    assert {version: len(scores) for version, scores in by_version.items()} == {1: 1, 2: 1}
    assert by_version[1] != by_version[2]


def test_a_version_with_changed_bytes_is_refused_and_the_old_one_serves_on(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_refuse")
    service.deploy(1, service.store(1))
    with service.running():
        sha256 = service.store(2)
        folder = service.bento_store.folder(2)
        assert folder is not None
        model = folder / "model.cb"
        model.write_bytes(model.read_bytes()[:-1] + b"x")
        service.deploy(2, sha256)
        refusal = wait_for("the refusal", lambda: [w for w in service.workers() if w["refused_version"] == 2])[0]
        assert "SHA-256" in refusal["refused_reason"]
        assert refusal["version"] == 1
        assert service.predict().json()["version"] == 1
        current = service.bento_store.current()
        assert current is not None
        assert current.version == 1
        service.deploy(1, current.sha256)
        wait_for("the refusal to end", lambda: not [w for w in service.workers() if w["refused_version"]])


def test_the_service_restarts_on_the_last_good_version_if_the_desired_one_is_damaged(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_damaged")
    service.deploy(1, service.store(1))
    with service.running():
        pass
    service.deploy(2, "0" * 64)
    service.store(2)
    with service.running():
        wait_for("the refusal", lambda: [w for w in service.workers() if w["refused_version"] == 2])
        assert service.predict().json()["version"] == 1


def test_a_version_with_other_features_replaces_the_worker_and_its_requests(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_schema")
    service.deploy(1, service.store(1))
    with service.running():
        assert service.predict(tenure=5).status_code == 400
        new_spec = spec_like_credit_score("serve_schema", service.settings.home, tenure={"type": "numeric", "min": 0})
        service.deploy(2, service.store(2, spec=new_spec))
        # A worker with the old request schema never reports version 2. It may be about to end until the new one does.
        wait_for("the new worker", lambda: any(worker["version"] == 2 for worker in service.workers()))
        answer = service.predict(tenure=5).json()
        assert answer["version"] == 2
        assert json.loads(service.logged()[answer["prediction_id"]]["features"])["tenure"] == 5
