"""Faults of deployments: MLflow is unreachable, deployments follow each other quickly, a version has damaged files."""

import time

from sqlalchemy import RowMapping

from pipelines import registry
from tests.bundles import write_bundle
from tests.chaos.accounts import settle
from tests.chaos.world import ChaosStack, require
from tests.services import wait_for


def kill_mlflow(stack: ChaosStack, seconds: float) -> None:
    """Deploy a version that only MLflow has while MLflow is stopped. Workers serve it after a start of MLflow."""
    instance, settings = stack.shared_instance(), stack.settings
    spec, folder = instance.service.spec, stack.folder / "only-in-mlflow"
    sha256 = write_bundle(spec, folder, seed=2)
    stack.start_mlflow()
    mlflow = registry.client(settings)
    run_id = mlflow.create_run(mlflow.create_experiment(spec.name)).info.run_id
    version = registry.register(
        settings, model=spec.name, mlflow_run_id=run_id, folder=folder, tags={}, description="only in MLflow"
    )
    with stack.send_traffic(instance.service) as run:
        stack.kill_mlflow()
        instance.service.deploy(version, sha256)
        time.sleep(seconds)
        workers = instance.heartbeats()
        require(not any(row["version"] == version for row in workers), "the version was served without MLflow")
        require(not any(row["refused_version"] for row in workers), "the version was refused")
        stack.start_mlflow()
        instance.wait_for_version(version)
    settle(run)
    stack.kill_mlflow()


def swap_three_times(stack: ChaosStack, seconds: float) -> None:
    """Deploy three versions, each as soon as one worker serves the previous version."""
    instance = stack.shared_instance()
    service = instance.service
    versions = [stack.new_version() for _ in range(3)]
    hashes = {version: service.store(version, seed=version) for version in versions}
    with stack.send_traffic(service) as run:
        for version in versions:
            service.deploy(version, hashes[version])
            wait_for("the swap", lambda: any(row["version"] == version for row in instance.heartbeats()))  # noqa: B023
        instance.wait_for_version(versions[-1])
        time.sleep(seconds)
    settle(run)


def deploy_corrupt_artifact(stack: ChaosStack, seconds: float) -> None:
    """Deploy a version with damaged files, which workers refuse. Then deploy a good version."""
    instance = stack.shared_instance()
    service = instance.service
    old_versions = {row["version"] for row in instance.heartbeats()}
    damaged_version, good_version = stack.new_version(), stack.new_version()
    damaged_sha256, good_sha256 = service.store(damaged_version), service.store(good_version)
    folder = service.bento_store.folder(damaged_version)
    assert folder is not None
    content = bytearray((folder / "model.cb").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.cb").write_bytes(content)
    with stack.send_traffic(service) as run:
        service.deploy(damaged_version, damaged_sha256)
        wait_for(
            "the refusal",
            lambda: all(_has_refused(row, damaged_version) for row in instance.heartbeats()),
        )
        time.sleep(seconds)
        require({row["version"] for row in instance.heartbeats()} == old_versions, "the old version is served no more")
        service.deploy(good_version, good_sha256)
        instance.wait_for_version(good_version)
    settle(run)


def _has_refused(row: RowMapping, version: int) -> bool:
    return row["refused_version"] == version and bool(row["refused_reason"])
