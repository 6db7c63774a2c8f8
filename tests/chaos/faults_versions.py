"""Faults of deployments: MLflow is away, several deployments in a row, and a version with damaged files."""

import time

from sqlalchemy import RowMapping

from pipelines import registry
from tests.bundles import write_bundle
from tests.chaos.accounts import settle
from tests.chaos.world import World, need
from tests.services import wait_for


def mlflow_killed(world: World, seconds: float) -> None:
    """Deploy a version that only MLflow has, while MLflow is away. Workers serve it once MLflow is back."""
    instance, settings = world.usual(), world.settings
    model, folder = instance.service.spec, world.folder / "only-in-mlflow"
    sha256 = write_bundle(model, folder, seed=2)
    world.start_mlflow()
    mlflow = registry.client(settings)
    run_id = mlflow.create_run(mlflow.create_experiment(model.name)).info.run_id
    version = registry.register(
        settings, model=model.name, mlflow_run_id=run_id, folder=folder, tags={}, description="only in MLflow"
    )
    with world.traffic(instance.service) as run:
        world.kill_mlflow()
        instance.service.deploy(version, sha256)
        time.sleep(seconds)
        workers = instance.heartbeats()
        need(not any(row["version"] == version for row in workers), "the version was served without MLflow")
        need(not any(row["refused_version"] for row in workers), "the version was refused")
        world.start_mlflow()
        instance.wait_for_version(version)
    settle(run)
    world.kill_mlflow()


def three_swaps(world: World, seconds: float) -> None:
    """Deploy three versions in a row, each as soon as a worker serves the one before."""
    instance = world.usual()
    service = instance.service
    versions = [world.new_version() for _ in range(3)]
    hashes = {version: service.store(version, seed=version) for version in versions}
    with world.traffic(service) as run:
        for version in versions:
            service.deploy(version, hashes[version])
            wait_for("the swap", lambda: any(row["version"] == version for row in instance.heartbeats()))  # noqa: B023
        instance.wait_for_version(versions[-1])
        time.sleep(seconds)
    settle(run)


def corrupt_artifact(world: World, seconds: float) -> None:
    """Deploy a version with damaged files, which workers reject, serving the old one. Then deploy a good version."""
    instance = world.usual()
    service = instance.service
    old_versions = {row["version"] for row in instance.heartbeats()}
    damaged, good = world.new_version(), world.new_version()
    sha256, sha256_of_good = service.store(damaged), service.store(good)
    folder = service.bento_store.folder(damaged)
    assert folder is not None
    content = bytearray((folder / "model.cb").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.cb").write_bytes(content)
    with world.traffic(service) as run:
        service.deploy(damaged, sha256)
        wait_for("its refusal", lambda: all(_refused(row, damaged) for row in instance.heartbeats()))
        time.sleep(seconds)
        need({row["version"] for row in instance.heartbeats()} == old_versions, "the old version does not serve on")
        service.deploy(good, sha256_of_good)
        instance.wait_for_version(good)
    settle(run)


def _refused(row: RowMapping, version: int) -> bool:
    return row["refused_version"] == version and bool(row["refused_reason"])
