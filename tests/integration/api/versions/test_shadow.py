"""A challenger in the shadow. It scores the answered requests, and clients see nothing of it."""

import json
import os
import resource
import signal
import socket
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psutil
import pytest

from api.versions import challenger
from api.versions.shadow_feed import Shadow
from db import history
from db.admin import erase
from db.driver import Client
from db.history import timeline
from db.history.heartbeats import Deployment
from db.log import reading
from db.log.prediction_ids import EPOCH, new_id, shadow_id
from db.log.writing import insert
from db.session import session
from db.tables import shadow
from pipelines.artifact.bundle import read_bundle
from pipelines.artifact.learner import pool_from_rows, score
from pipelines.deployment import shadow as shadows
from stack.programs.program import settings_environment
from tests.integration.conftest import put_into_service
from tests.servers import free_port
from tests.services import make_service, spec_like_credit_score, wait_for
from utils.clock import utc_now
from utils.errors import NothingToDo


def put_into_shadow(service, version, sha256):
    with session(service.settings, "pipeline") as connection:
        row = {"model": service.spec.name, "version": version, "artifact_sha256": sha256, "caused_by": "test"}
        history.add(connection, shadow, {**row, "created_at": utc_now()})


def shadow_versions(service):
    return [worker["shadow_version"] for worker in service.workers()]


def by_role(service):
    rows = service.logged()
    return [{key: row for key, row in rows.items() if row["role"] == role} for role in ("champion", "shadow")]


def test_the_challenger_scores_every_answered_request_and_its_rows_are_logged(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_main", workers=2)
    service.deploy(1, service.store(1, seed=1))
    second = service.store(2, seed=2)
    with service.running():
        wait_for("both workers", lambda: [w["version"] for w in service.workers()] == [1, 1])
        put_into_shadow(service, 2, second)
        wait_for("both challengers", lambda: shadow_versions(service) == [2, 2])
        answers = [service.predict(customer_id=f"c{i}\n\"'", age=20.5 + i, occupation=None).json() for i in range(40)]
        wait_for("the shadow's rows", lambda: len(by_role(service)[1]) == 40)
        assert {answer["version"] for answer in answers} == {1}
        champions, shadow_rows = by_role(service)
        folder = service.bento_store.folder(2)
        assert folder is not None
        bundle = read_bundle(folder, sha256=second)
        for key, champion in champions.items():
            row = shadow_rows[str(shadow_id(UUID(key), 2))]
            assert (row["version"], row["model"], row["created_at"]) == (2, "shadow_main", champion["created_at"])
            assert (row["entity_id"], row["instance"]) == (champion["entity_id"], champion["instance"])
            features = json.loads(row["features"])
            assert features == json.loads(champion["features"])
            pool = pool_from_rows([list(features.values())], spec=bundle.spec)
            expected = score(bundle.model, pool, spec=bundle.spec)
            assert row["prediction"] == expected.predictions[0]
            assert expected.probabilities is not None
            assert np.allclose(list(json.loads(row["probabilities"]).values()), expected.probabilities[0], atol=1e-9)
            assert json.loads(row["warnings"])[0] == "missing: occupation"

        put_into_shadow(service, None, None)
        wait_for("the end of the shadow", lambda: shadow_versions(service) == [None, None])
        service.predict()
        put_into_shadow(service, 2, second)
        wait_for("both challengers again", lambda: shadow_versions(service) == [2, 2])
        service.deploy(2, second)  # version 2 becomes the champion
        wait_for("the swap", lambda: [w["version"] for w in service.workers()] == [2, 2])
        wait_for("the end of the shadow", lambda: shadow_versions(service) == [None, None])
        service.predict()
        assert len(by_role(service)[1]) == 40


def test_a_challenger_that_cannot_score_these_requests_is_refused_with_the_reason(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_refuse")
    service.deploy(1, service.store(1))
    with service.running():
        other = spec_like_credit_score("shadow_refuse", service.settings.home, tenure={"type": "numeric"})
        put_into_shadow(service, 2, service.store(2, spec=other))
        worker = wait_for("the refusal", lambda: [w for w in service.workers() if w["shadow_refused"]])[0]
        assert worker["shadow_refused"] == "it needs the feature tenure, which requests do not carry"
        assert (worker["shadow_version"], worker["version"], worker["refused_version"]) == (None, 1, None)
        put_into_shadow(service, 3, "0" * 64)  # a version that does not exist
        wait_for("another refusal", lambda: [w for w in service.workers() if "MLflow" in (w["shadow_refused"] or "")])
        assert service.predict().json()["version"] == 1
        put_into_shadow(service, None, None)
        wait_for("no refusal", lambda: not [w for w in service.workers() if w["shadow_refused"]])


def test_a_challenger_that_dies_is_started_again_and_ends_with_its_worker(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_dies")
    service.deploy(1, service.store(1, seed=1))

    def challengers():
        children_of_workers = [psutil.Process(worker["pid"]).children() for worker in service.workers()]
        alive = [
            child for children in children_of_workers for child in children if child.status() != psutil.STATUS_ZOMBIE
        ]
        return [child for child in alive if "api.versions.challenger" in child.cmdline()]

    with service.running():
        put_into_shadow(service, 2, service.store(2, seed=2))
        wait_for("the challenger", lambda: shadow_versions(service) == [2])
        first = challengers()[0]
        assert (first.nice(), os.sched_getscheduler(first.pid)) == (19, os.SCHED_IDLE)
        # The session's share of processors, if the kernel has this file.
        autogroup = Path(f"/proc/{first.pid}/autogroup")
        assert not autogroup.exists() or autogroup.read_text().split()[-1] == "19"
        first.kill()
        second = wait_for("another one", lambda: [child for child in challengers() if child.pid != first.pid])[0]
        wait_for("it to be ready", lambda: shadow_versions(service) == [2])
        assert service.predict().status_code == 200
    wait_for("its end", lambda: not second.is_running())


def row_of(service, entity="e", role="champion", **values):
    """A row of the log. `values` replace its defaults."""
    prediction_id = values.get("prediction_id") or new_id(utc_now())
    probabilities = values.get("probabilities") or {"Poor": 0.7, "Standard": 0.2, "Good": 0.1}
    features = {name: value for name, value in service.row.items() if name != service.spec.entity}
    return (
        str(prediction_id),
        service.spec.name,
        values.get("version", 1),
        role,
        entity,
        json.dumps({**features, **values.get("features", {})}),
        values.get("prediction", "Poor"),
        0.7,
        json.dumps(probabilities),
        "[]",
        values.get("latency_ms", 1.0),
        str(uuid4()),
        EPOCH + (utc_now() - EPOCH),
        utc_now(),
    )


def test_rows_for_a_full_queue_are_dropped_and_counted_without_waiting(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_full")
    for name, value in settings_environment(service.settings, secrets=("db_api_password",)).items():
        monkeypatch.setenv(name, value)
    sha256 = service.store(2)
    feed = Shadow(service.spec, uuid4())

    def follow():
        feed.follow(Deployment(2, sha256, EPOCH))
        return feed

    try:
        wait_for("the challenger", lambda: follow().version or feed.refusal)
        assert (feed.version, feed.refusal) == (2, None)
        assert feed._process is not None
        child = feed._process.pid
        os.kill(child, signal.SIGSTOP)
        row_count = 0
        while not feed.counts["dropped"]:
            feed.offer([row_of(service)] * 100)
            row_count += 100
            assert row_count < 1_000_000
        assert feed.counts["sent"] + feed.counts["dropped"] + len(feed._lines) == row_count
        os.kill(child, signal.SIGCONT)
        wait_for("the rows that it got", lambda: follow().counts["scored"])
        assert feed.counts["sent"] >= feed.counts["scored"]
    finally:
        feed.stop()
    champions, shadow_rows = by_role(service)
    assert (len(champions), 0 < len(shadow_rows) <= row_count // 100) == (0, True)


def counts_after(service, rows, *, settings, monkeypatch):
    """The counts of a worker after its challenger, which runs in this process, has received `rows`."""
    desired = Deployment(1, service.store(1), EPOCH)
    version = challenger.fetch(service.settings, service.spec.name, desired, serving=service.spec)
    monkeypatch.setattr(challenger, "TELL", 0.0)
    worker_end, challenger_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    feed = Shadow(service.spec, uuid4())
    feed.version, feed._channel = 1, worker_end
    feed.offer(rows)
    feed._send()
    worker_end.shutdown(socket.SHUT_WR)
    with worker_end, challenger_end:
        with pytest.raises(EOFError):
            challenger.serve(challenger_end, version, settings=settings, instance=uuid4())
        worker_end.setblocking(False)
        feed._receive()
    return feed.counts


def test_without_mariadb_shadow_rows_are_dropped_and_counted(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_away")
    without_mariadb = service.settings.model_copy(update={"mariadb_port": free_port()})
    rows = [row_of(service), row_of(service, features={"age": 300.0})]  # the second has a value outside its limits
    counts = counts_after(service, rows, settings=without_mariadb, monkeypatch=monkeypatch)
    assert counts == {"sent": 2, "unlogged": 1, "refused": 1}


def test_a_worker_with_a_thousand_connections_has_a_challenger_too(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_many")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as resources:
        resources.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
        for _ in range(1024):
            resources.enter_context(Path(os.devnull).open())
        counts = counts_after(service, [row_of(service)], settings=settings, monkeypatch=monkeypatch)
    assert counts == {"sent": 1, "scored": 1}


def test_the_challenger_does_not_log_an_entity_that_was_forgotten_in_the_meantime(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_forgets")
    rows = [row_of(service, "stays"), row_of(service, "goes")]
    with erase.deleting(settings) as connection:
        options: dict[str, Any] = {"entity_id": "goes", "places": ("log",), "caused_by": "test", "now": utc_now()}
        erase.open_tombstone(connection, model=service.spec.name, **options)
    # The entity comes back after the tombstone.
    rows.append(row_of(service, "goes", prediction_id=new_id(utc_now() + timedelta(seconds=1))))
    counts = counts_after(service, rows, settings=service.settings, monkeypatch=monkeypatch)
    assert counts == {"sent": 3, "scored": 2, "unlogged": 1}
    logged_ids = {str(shadow_id(UUID(row[0]), 1)) for row in (rows[0], rows[2])}
    assert set(service.logged()) == logged_ids


def test_monitoring_and_history_read_the_champions_rows_and_forgetting_deletes_both(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_read")
    client, start = Client(settings), utc_now()
    champion = row_of(service, "someone")
    shadow_row = row_of(service, "someone", "shadow", version=2, prediction_id=shadow_id(UUID(champion[0]), 2))
    client.run(lambda link: insert(link, [champion, shadow_row]))
    client.close()
    end = utc_now()
    chunks_of_ids = [
        chunk["prediction_id"].to_pylist()
        for chunk in reading.predictions(settings, "shadow_read", start=start, end=end)
    ]
    assert chunks_of_ids == [[champion[0]]]
    with session(settings, "reader") as connection:
        first_answers = [
            timeline.first_answer(connection, "shadow_read", version=version, since=start) for version in (1, 2)
        ]
    assert [answer is not None for answer in first_answers] == [True, False]
    with erase.deleting(settings) as connection:
        assert erase.in_log(connection, "shadow_read", "someone", delete=True) == (2, 0)
    assert service.logged() == {}


def test_rows_start_and_stop_a_shadow(mlflow_settings, tmp_path):
    service = make_service(mlflow_settings, tmp_path, "shadow_rows", mlflow_port=mlflow_settings.mlflow_port)
    settings = service.settings
    options: dict[str, Any] = {"model": "shadow_rows", "caused_by": "test", "now": utc_now()}
    with pytest.raises(NothingToDo, match="no version is in the shadow"):
        shadows.stop(settings, **options)
    version = put_into_service(service.spec, tmp_path / "one", settings=settings, now=utc_now())
    with pytest.raises(NothingToDo, match="serves"):
        shadows.start(settings, version=version, **options)
    service.deploy(version + 1, service.store(version + 1, seed=2))
    shadows.start(settings, version=version, **options)
    current = shadows.current(settings, "shadow_rows")
    assert current is not None
    assert current["version"] == version
    with service.running():  # which downloads the version from MLflow
        # The challenger has the lowest priority. On a busy machine, importing MLflow may take it minutes.
        wait_for("the challenger", lambda: shadow_versions(service) == [version])
        assert service.bento_store.folder(version)
    assert shadows.stop(settings, **options) == version
    assert shadows.current(settings, "shadow_rows") is None
