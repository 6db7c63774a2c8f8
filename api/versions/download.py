"""`python -m api.versions.download MODEL VERSION`: bring a version from MLflow into this service's Bento store.

A process of its own, because importing MLflow takes seconds and 200 MB that a serving worker must not carry. Where the
store holds the version already, with the registry's hash, it is left as it is; a damaged copy is replaced. Then the
versions that neither serve, should serve, nor would be rolled back to leave the store.
"""

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from api.versions.bento_store import BentoStore
from db import driver
from db.history import heartbeats
from pipelines import registry
from pipelines.artifact.bundle_files import bundle_hash
from utils.errors import EvergreenError, IntegrityError, NotNow
from utils.settings import Settings, load_settings


def download(settings: Settings, model: str, version: int) -> None:
    """Make the Bento store hold `version` as it was registered.

    Raises: Unreachable, NotFound; IntegrityError where MLflow's files are not those that were registered.
    """
    bento_store = BentoStore(settings, model)
    with bento_store.pulling():
        tags = registry.version_tags(settings, model, version)
        here = bento_store.folder(version)
        if here and bundle_hash(here) == tags["bundle_sha256"]:
            return
        with tempfile.TemporaryDirectory() as folder:
            registered = registry.download(settings, model, version, Path(folder))
            if (found := bundle_hash(Path(folder))) != registered:
                raise IntegrityError(
                    what=f"{model} version {version} in MLflow",
                    expected=f"SHA-256 {registered[:12]}",
                    found=found[:12],
                )
            bento_store.put(version, Path(folder), tags=tags)
        with suppress(NotNow):  # MariaDB is away: the next pull tidies
            wanted = driver.Client(settings).run(lambda link: heartbeats.wanted_versions(link, model))
            if wanted:
                bento_store.tidy(keep=[version, *wanted])


def main() -> int:
    model, version = sys.argv[1:]
    try:
        download(load_settings(), model, int(version))
    except EvergreenError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
