"""A challenger in the shadow: it scores what was answered, and nobody hears of it."""

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


def shadowing(service):
    return [worker["shadow_version"] for worker in service.workers()]


def by_role(service):
    rows = service.logged()
    return [{key: row for key, row in rows.items() if row["role"] == role} for role in ("champion", "shadow")]


def test_what_was_answered_is_scored_by_the_challenger_too_and_logged_beside_it(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_main", workers=2)
    service.deploy(1, service.store(1, seed=1))
    second = service.store(2, seed=2)
    with service.running():
        wait_for("both workers", lambda: [w["version"] for w in service.workers()] == [1, 1])
        put_into_shadow(service, 2, second)
        wait_for("both challengers", lambda: shadowing(service) == [2, 2])
        answers = [service.predict(customer_id=f"c{i}\n\"'", age=20.5 + i, occupation=None).json() for i in range(40)]
        wait_for("the shadow's rows", lambda: len(by_role(service)[1]) == 40)
        assert {answer["version"] for answer in answers} == {1}
        champions, shadowed = by_role(service)
        folder = service.bento_store.folder(2)
        assert folder is not None
        bundle = read_bundle(folder, sha256=second)
        for key, champion in champions.items():
            row = shadowed[str(shadow_id(UUID(key), 2))]
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
        wait_for("the end of the shadow", lambda: shadowing(service) == [None, None])
        service.predict()
        put_into_shadow(service, 2, second)
        wait_for("both challengers again", lambda: shadowing(service) == [2, 2])
        service.deploy(2, second)  # now it is what serves
        wait_for("the swap", lambda: [w["version"] for w in service.workers()] == [2, 2])
        wait_for("the end of the shadow", lambda: shadowing(service) == [None, None])
        service.predict()
        assert len(by_role(service)[1]) == 40


def test_a_challenger_that_cannot_score_these_requests_is_refused_with_the_reason(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_refuse")
    service.deploy(1, service.store(1))
    with service.running():
        other = spec_like_credit_score("shadow_refuse", service.settings.home, tenure={"type": "numeric"})
        put_into_shadow(service, 2, service.store(2, spec=other))
        told = wait_for("the refusal", lambda: [w for w in service.workers() if w["shadow_refused"]])[0]
        assert told["shadow_refused"] == "it needs the feature tenure, which requests do not carry"
        assert (told["shadow_version"], told["version"], told["refused_version"]) == (None, 1, None)
        put_into_shadow(service, 3, "0" * 64)  # nowhere
        wait_for("another refusal", lambda: [w for w in service.workers() if "MLflow" in (w["shadow_refused"] or "")])
        assert service.predict().json()["version"] == 1
        put_into_shadow(service, None, None)
        wait_for("no refusal", lambda: not [w for w in service.workers() if w["shadow_refused"]])


def test_a_challenger_that_dies_is_started_again_and_ends_with_its_worker(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_dies")
    service.deploy(1, service.store(1, seed=1))

    def challengers():
        found = [psutil.Process(worker["pid"]).children() for worker in service.workers()]
        alive = [child for children in found for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return [child for child in alive if "api.versions.challenger" in child.cmdline()]

    with service.running():
        put_into_shadow(service, 2, service.store(2, seed=2))
        wait_for("the challenger", lambda: shadowing(service) == [2])
        first = challengers()[0]
        assert (first.nice(), os.sched_getscheduler(first.pid)) == (19, os.SCHED_IDLE)
        shared = Path(f"/proc/{first.pid}/autogroup")  # by which Linux shares the processor among sessions, if it does
        assert not shared.exists() or shared.read_text().split()[-1] == "19"
        first.kill()
        second = wait_for("another one", lambda: [each for each in challengers() if each.pid != first.pid])[0]
        wait_for("it to be ready", lambda: shadowing(service) == [2])
        assert service.predict().status_code == 200
    wait_for("its end", lambda: not second.is_running())


def row_of(service, entity="e", role="champion", **given):
    made = given.get("prediction_id") or new_id(utc_now())
    probabilities = given.get("probabilities") or {"Poor": 0.7, "Standard": 0.2, "Good": 0.1}
    features = {name: value for name, value in service.row.items() if name != service.spec.entity}
    return (
        str(made),
        service.spec.name,
        given.get("version", 1),
        role,
        entity,
        json.dumps({**features, **given.get("features", {})}),
        given.get("prediction", "Poor"),
        0.7,
        json.dumps(probabilities),
        "[]",
        given.get("latency_ms", 1.0),
        str(uuid4()),
        EPOCH + (utc_now() - EPOCH),
        utc_now(),
    )


def test_rows_that_find_the_queue_full_are_dropped_and_counted_and_nobody_waits(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_full")
    for name, value in settings_environment(service.settings, secrets=("db_api_password",)).items():
        monkeypatch.setenv(name, value)
    sha256 = service.store(2)
    mine = Shadow(service.spec, uuid4())

    def followed():
        mine.follow(Deployment(2, sha256, EPOCH))
        return mine

    try:
        wait_for("the challenger", lambda: followed().version or mine.refusal)
        assert (mine.version, mine.refusal) == (2, None)
        assert mine._process is not None
        child = mine._process.pid
        os.kill(child, signal.SIGSTOP)
        offered = 0
        while not mine.counts["dropped"]:
            mine.offer([row_of(service)] * 100)
            offered += 100
            assert offered < 1_000_000
        assert mine.counts["sent"] + mine.counts["dropped"] + len(mine._lines) == offered
        os.kill(child, signal.SIGCONT)
        wait_for("the rows that it got", lambda: followed().counts["scored"])
        assert mine.counts["sent"] >= mine.counts["scored"]
    finally:
        mine.stop()
    champions, shadowed = by_role(service)
    assert (len(champions), 0 < len(shadowed) <= offered // 100) == (0, True)


def scored_by_challenger(service, rows, *, settings, monkeypatch):
    """What a worker's counts are once its challenger, here in this process, has had `rows`."""
    wanted = Deployment(1, service.store(1), EPOCH)
    version = challenger.fetch(service.settings, service.spec.name, wanted, serving=service.spec)
    monkeypatch.setattr(challenger, "TELL", 0.0)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine = Shadow(service.spec, uuid4())
    mine.version, mine._channel = 1, here
    mine.offer(rows)
    mine._send()
    here.shutdown(socket.SHUT_WR)
    with here, there:
        with pytest.raises(EOFError):
            challenger.serve(there, version, settings=settings, instance=uuid4())
        here.setblocking(False)
        mine._hear()
    return mine.counts


def test_without_mariadb_shadow_rows_are_dropped_and_counted(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_away")
    down = service.settings.model_copy(update={"mariadb_port": free_port()})
    rows = [row_of(service), row_of(service, features={"age": 300.0})]  # the second is outside its limits
    counts = scored_by_challenger(service, rows, settings=down, monkeypatch=monkeypatch)
    assert counts == {"sent": 2, "unlogged": 1, "refused": 1}


def test_a_worker_with_a_thousand_connections_has_a_challenger_too(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_many")
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (before, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, 4096), hard))
        for _ in range(1024):
            opened.enter_context(Path(os.devnull).open())
        counts = scored_by_challenger(service, [row_of(service)], settings=settings, monkeypatch=monkeypatch)
    assert counts == {"sent": 1, "scored": 1}


def test_who_is_forgotten_while_the_challenger_gathers_rows_is_not_logged_by_it(settings, tmp_path, monkeypatch):
    service = make_service(settings, tmp_path, "shadow_forgets")
    rows = [row_of(service, "stays"), row_of(service, "goes")]
    with erase.deleting(settings) as connection:
        told: dict[str, Any] = {"entity_id": "goes", "places": ("log",), "caused_by": "test", "now": utc_now()}
        erase.open_tombstone(connection, model=service.spec.name, **told)
    rows.append(row_of(service, "goes", prediction_id=new_id(utc_now() + timedelta(seconds=1))))  # came back
    counts = scored_by_challenger(service, rows, settings=service.settings, monkeypatch=monkeypatch)
    assert counts == {"sent": 3, "scored": 2, "unlogged": 1}
    logged_ids = {str(shadow_id(UUID(row[0]), 1)) for row in (rows[0], rows[2])}
    assert set(service.logged()) == logged_ids


def test_what_is_read_for_monitoring_and_histories_is_the_champions_and_forgetting_finds_both(settings, tmp_path):
    service = make_service(settings, tmp_path, "shadow_read")
    client, start = Client(settings), utc_now()
    champion = row_of(service, "someone")
    other = row_of(service, "someone", "shadow", version=2, prediction_id=shadow_id(UUID(champion[0]), 2))
    client.run(lambda link: insert(link, [champion, other]))
    client.close()
    end = utc_now()
    read = [
        chunk["prediction_id"].to_pylist()
        for chunk in reading.predictions(settings, "shadow_read", start=start, end=end)
    ]
    assert read == [[champion[0]]]
    with session(settings, "reader") as connection:
        answered = [
            timeline.first_answer(connection, "shadow_read", version=version, since=start) for version in (1, 2)
        ]
    assert [each is not None for each in answered] == [True, False]
    with erase.deleting(settings) as connection:
        assert erase.in_log(connection, "shadow_read", "someone", delete=True) == (2, 0)
    assert service.logged() == {}


def test_a_shadow_is_begun_and_ended_by_rows(mlflow_settings, tmp_path):
    service = make_service(mlflow_settings, tmp_path, "shadow_rows", mlflow_port=mlflow_settings.mlflow_port)
    settings = service.settings
    told: dict[str, Any] = {"model": "shadow_rows", "caused_by": "test", "now": utc_now()}
    with pytest.raises(NothingToDo, match="no version is in the shadow"):
        shadows.stop(settings, **told)
    version = put_into_service(service.spec, tmp_path / "one", settings=settings, now=utc_now())
    with pytest.raises(NothingToDo, match="serves"):
        shadows.start(settings, version=version, **told)
    service.deploy(version + 1, service.store(version + 1, seed=2))
    shadows.start(settings, version=version, **told)
    begun = shadows.current(settings, "shadow_rows")
    assert begun is not None
    assert begun["version"] == version
    with service.running():  # fetched from MLflow as any version is
        # Its process gives way to all others, so on a busy machine importing MLflow may take minutes.
        wait_for("the challenger", lambda: shadowing(service) == [version])
        assert service.bento_store.folder(version)
    assert shadows.stop(settings, **told) == version
    assert shadows.current(settings, "shadow_rows") is None
