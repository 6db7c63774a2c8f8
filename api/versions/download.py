"""`python -m api.versions.download MODEL VERSION`: copy a version from MLflow into this service's Bento store.

It is a separate process, because importing MLflow takes seconds and 200 MB that a serving worker must not use. A copy
in the store with the registry's hash stays. A damaged copy is replaced. Afterwards a version leaves the store if it
does not serve, should not serve, and is not the target of a rollback.
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
    """Copy `version` into the Bento store as it was registered.

    Raises: Unreachable, NotFound; IntegrityError if MLflow's files differ from the registered files.
    """
    bento_store = BentoStore(settings, model)
    with bento_store.pulling():
        tags = registry.version_tags(settings, model, version)
        stored = bento_store.folder(version)
        if stored and bundle_hash(stored) == tags["bundle_sha256"]:
            return
        with tempfile.TemporaryDirectory() as folder:
            registered = registry.download(settings, model, version, Path(folder))
            if (sha256 := bundle_hash(Path(folder))) != registered:
                raise IntegrityError(
                    what=f"{model} version {version} in MLflow",
                    expected=f"SHA-256 {registered[:12]}",
                    found=sha256[:12],
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
