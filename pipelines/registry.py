"""The only module that uses MLflow's registry: versions with their tags and files, and aliases.

The tags of a version record its origin: bundle_sha256, run_id, snapshot_id, snapshot_sha256, spec_hash, code_commit,
fitted_until, reason, and evaluated_as for a final fit. The alias `challenger` is the last candidate, `champion` is the
version that serves, and `previous` is the version before it. The rows in MariaDB decide which version serves. The
aliases are set from these rows.
"""

import logging
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from db.history import deployments
from db.session import session
from pipelines.artifact.bundle_files import FILES, bundle_hash
from utils.errors import NotFound, Unreachable
from utils.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipelines.artifact.bundle import Bundle

HEALTH_TIMEOUT = 5  # seconds
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


def client(settings: Settings) -> "MlflowClient":
    """Return an MLflow client after a health check. Without the check, MLflow retries for minutes if it is down.

    Raises: Unreachable.
    """
    import requests  # imported here, because DAG files import this module at every parse

    address = settings.mlflow_tracking_url
    try:
        requests.get(f"{address}/health", timeout=HEALTH_TIMEOUT).raise_for_status()
    except requests.RequestException as error:
        raise Unreachable(service="MLflow", address=address, reason=type(error).__name__) from None
    # MLflow takes two seconds to import. By default it draws progress bars and prints addresses.
    from mlflow import MlflowClient
    from mlflow.environment_variables import (
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
    )

    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # type: ignore[no-untyped-call]
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)  # type: ignore[no-untyped-call]
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=address, registry_uri=address)


def register(
    settings: Settings, *, model: str, mlflow_run_id: str, folder: Path, tags: Mapping[str, str], description: str
) -> int:
    """Upload a folder as a new version of `model`. Return the number of the version.

    The tag bundle_sha256 is added here.

    folder: an MLflow model with the files of a bundle.
    """
    from mlflow.entities import LoggedModelStatus
    from mlflow.exceptions import MlflowException

    mlflow = client(settings)
    try:
        mlflow.create_registered_model(model, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = mlflow.get_run(mlflow_run_id).info.experiment_id
    logged_model = mlflow.create_logged_model(
        experiment, name=model, source_run_id=mlflow_run_id, model_type="CatBoost"
    )
    mlflow.log_model_artifacts(logged_model.model_id, str(folder))
    mlflow.finalize_logged_model(logged_model.model_id, LoggedModelStatus.READY)
    created_version = mlflow.create_model_version(
        model,
        source=f"models:/{logged_model.model_id}",
        run_id=mlflow_run_id,
        tags={**tags, "bundle_sha256": bundle_hash(folder)},
        model_id=logged_model.model_id,
    )
    return int(created_version.version)


def find_version(settings: Settings, model: str, *, run_id: str, evaluated_as: int | None) -> int | None:
    """Find the version that a run registered. Return None if there is no such version.

    evaluated_as: the number of the candidate to find its final fit. None to find the candidate itself.
    """
    versions = client(settings).search_model_versions(f"name = '{model}'")
    evaluated_as_tag = str(evaluated_as) if evaluated_as else None
    numbers = [
        int(version.version)
        for version in versions
        if version.tags.get("run_id") == run_id and version.tags.get("evaluated_as") == evaluated_as_tag
    ]
    return max(numbers, default=None)


def version_tags(settings: Settings, model: str, version: int) -> dict[str, str]:
    """The tags of a version.

    Raises: NotFound, Unreachable.
    """
    return dict(_read_version(settings, model, version).tags)


def _read_version(settings: Settings, model: str, version: int) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        return client(settings).get_model_version(model, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NotFound(
            what=f"version {version} of {model}", where=f"MLflow at {settings.mlflow_tracking_url}"
        ) from None


def fitted_until(tags: Mapping[str, str]) -> datetime:
    """The event time (UTC) of the newest label that the version was fitted on."""
    return datetime.fromisoformat(tags["fitted_until"])


def download(settings: Settings, model: str, version: int, folder: Path) -> str:
    """Download the files of a version's bundle into `folder`. Return the SHA-256 recorded at registration.

    This function does not check the hash. `read_bundle` does.

    Raises: NotFound, Unreachable.
    """
    registered = _read_version(settings, model, version)
    import mlflow.artifacts

    # MLflow would look up a `models:/` address in the registry of the process, not in the registry of `settings`.
    location = client(settings).get_logged_model(str(registered.source).removeprefix("models:/")).artifact_location
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"{location}/{name}", dst_path=str(folder), tracking_uri=settings.mlflow_tracking_url
        )
    return str(registered.tags["bundle_sha256"])


def load(settings: Settings, model: str, version: int) -> "Bundle":
    """Load a version into memory, and check its hash and its golden rows.

    Raises: NotFound, Unreachable, IntegrityError.
    """
    from pipelines.artifact.bundle import read_bundle

    with tempfile.TemporaryDirectory() as folder:
        sha256 = download(settings, model, version, Path(folder))
        return read_bundle(Path(folder), sha256=sha256)


def set_alias(settings: Settings, model: str, alias: str, version: int | None) -> None:
    """Point `alias` at `version`, or delete the alias if `version` is None."""
    mlflow = client(settings)
    if version is None:
        mlflow.delete_registered_model_alias(model, alias)
    else:
        mlflow.set_registered_model_alias(model, alias, str(version))


def versions_without_alias(settings: Settings, model: str) -> set[int]:
    """The numbers of the versions of `model` without an alias.

    Raises: Unreachable.
    """
    from mlflow.exceptions import MlflowException

    mlflow = client(settings)
    try:
        aliased = {int(version) for version in mlflow.get_registered_model(model).aliases.values()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return set()
    numbers: set[int] = set()
    token: str | None = None
    while token != "":
        page = mlflow.search_model_versions(f"name = '{model}'", max_results=1000, page_token=token)
        numbers |= {int(version.version) for version in page}
        token = page.token or ""
    return numbers - aliased


def discard(settings: Settings, model: str, version: int) -> None:
    """Delete a version and its files. Its number is not used again. A second call completes a broken deletion.

    Raises: NotFound, Unreachable.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    mlflow, model_id = client(settings), str(_read_version(settings, model, version).source).removeprefix("models:/")
    location = mlflow.get_logged_model(model_id).artifact_location
    files = get_artifact_repository(location, tracking_uri=settings.mlflow_tracking_url)
    if files.list_artifacts():
        files.delete_artifacts()
    mlflow.delete_model_version(model, str(version))
    mlflow.delete_logged_model(model_id)


def reconcile(settings: Settings, model: str) -> None:
    """Set the aliases `champion` and `previous` from the deployment history. A second call changes nothing."""
    with session(settings, "pipeline") as connection:
        row = deployments.desired_row(connection, model)
    set_alias(settings, model, CHAMPION, row["version"] if row else None)
    set_alias(settings, model, PREVIOUS, row["previous_version"] if row else None)
