"""Going from one version to another, and ending, under traffic: real BentoML processes, real MariaDB and MLflow."""

import json
from contextlib import ExitStack

import pytest
import yaml
from catboost import sum_models

from db import history
from db.session import session
from pipelines import deploy, registry
from pipelines.bundle import bundle_hash, read_bundle, write_companions
from pipelines.spec import ModelSpec
from tests.bundles import rows_for, write_bundle
from tests.integration.conftest import put_into_service
from tests.services import make_service, spec_like_credit_score, wait_for
from tests.steady_load import steady_load
from utils.clock import utc_now
from utils.errors import DeploymentFailed


def slow_version(service, version):
    """A version in the Bento store whose model is that of version 1 four thousand times over; returns its SHA-256."""
    spec, folder = service.spec, service.settings.home / "slow"
    once = read_bundle(service.shelf.folder(1), sha256=bundle_hash(service.shelf.folder(1))).model
    folder.mkdir()
    model = sum_models([once] * 4000, weights=[1 / 4000] * 4000)
    model.save_model(str(folder / "model.cb"))
    profile = json.loads((service.shelf.folder(1) / "profile.json").read_text())
    write_companions(folder, model=model, spec=spec, profile=profile, fitted=rows_for(spec, rows=100, seed=1))
    service.shelf.put(version, folder, tags={})
    return bundle_hash(folder)


def test_a_version_that_is_much_slower_than_the_one_that_serves_is_refused(settings, tmp_path):
    service = make_service(settings, tmp_path, "swap_slow")
    file = yaml.safe_load((service.settings.home / "swap_slow.yaml").read_text())
    columns = file["features"]["columns"]  # models with texts can't be summed
    file["features"]["columns"] = {name: each for name, each in columns.items() if each["type"] == "numeric"}
    service.spec = ModelSpec.parse(file | {"gates": {}}, file="swap_slow.yaml")
    service.deploy(1, service.store(1))
    with service.running():
        wait_for("the first version", lambda: versions(service) == [1])
        service.deploy(2, slow_version(service, 2))
        refusal = wait_for("the refusal", lambda: [w for w in service.workers() if w["refused_version"] == 2])[0]
        assert "too slow to serve" in refusal["refused_reason"]
        assert refusal["version"] == 1
        assert service.shelf.current().version == 1
        assert service.post("/predict", {"data": service.row}).json()["version"] == 1


def versions(service):
    return [worker["version"] for worker in service.workers()]


def test_replacing_two_workers_for_other_requests_loses_no_request(settings, tmp_path):
    service = make_service(settings, tmp_path, "swap_replace", workers=2)
    service.deploy(1, service.store(1))
    with service.running():
        wait_for("both workers", lambda: versions(service) == [1, 1])
        changed = spec_like_credit_score("swap_replace", service.settings.home, tenure={"type": "numeric", "min": 0})
        second = service.store(2, spec=changed)
        before = {worker["pid"] for worker in service.workers()}
        with steady_load(service) as load:
            load.more(100)
            service.deploy(2, second)
            wait_for("two new workers", lambda: versions(service).count(2) == 2)
            load.more(100)
        assert not before & {worker["pid"] for worker in service.workers() if worker["version"] == 2}
        assert service.predict(tenure=5).json()["version"] == 2
    assert load.failures == []
    assert {status for status, _, _ in load.answers} == {200}
    assert {answer["version"] for _, answer, _ in load.answers} == {1, 2}


def test_a_service_that_is_told_to_end_answers_all_that_it_has_accepted(settings, tmp_path):
    service = make_service(settings, tmp_path, "swap_stop", workers=2)
    service.deploy(1, service.store(1))
    with ExitStack() as outlives, service.running():
        wait_for("both workers", lambda: versions(service) == [1, 1])
        load = outlives.enter_context(steady_load(service, clients=16, pause=0, until_closed=True))
        load.more(200)
    assert load.failures == []
    assert {status for status, _, _ in load.answers} == {200}
    assert {answer["prediction_id"] for _, answer, _ in load.answers} == set(service.logged())


def test_why_a_version_was_refused_is_in_the_deployments_and_the_one_before_serves_on(mlflow_settings, tmp_path):
    service = make_service(mlflow_settings, tmp_path, "swap_refused", mlflow_port=mlflow_settings.mlflow_port)
    settings, spec, name = service.settings, service.spec, service.spec.name
    good = put_into_service(spec, tmp_path / "good", settings=settings, now=utc_now())
    with service.running():
        wait_for("the good version", lambda: versions(service) == [good])
        # Registered with predictions that its model does not make.
        write_bundle(spec, tmp_path / "bad", seed=2)
        (tmp_path / "bad" / "golden.json").write_bytes((tmp_path / "good" / "golden.json").read_bytes())
        mlflow = registry.client(settings)
        run = mlflow.create_run(mlflow.get_experiment_by_name(name).experiment_id).info.run_id
        bad = registry.register(settings, model=name, mlflow_run_id=run, folder=tmp_path / "bad", tags={},
                                description="")  # fmt: skip
        told = {"model": name, "caused_by": "test/1", "now": utc_now()}
        deploy.roll_out(settings, version=bad, reason="test", **told)
        with pytest.raises(DeploymentFailed, match="golden rows"):
            deploy.verify(settings, model=name, version=bad, caused_by="test/1")
        assert service.predict().json()["version"] == good
        assert deploy.undo(settings, **told) == good
        deploy.verify(settings, model=name, version=good, caused_by="test/1")
    rows = service.query("SELECT action, version, reason FROM deployment WHERE model = :model ORDER BY id")
    assert [(row["action"], row["version"]) for row in rows] == [
        ("deploy", good), ("deploy", bad), ("refused", bad), ("failed", bad), ("rollback", good), ("live", good),
    ]  # fmt: skip
    assert all("golden rows: expected the recorded predictions" in row["reason"] for row in rows[2:5])
    with session(settings, "pipeline") as connection:
        assert history.champion(connection, name)["version"] == good
