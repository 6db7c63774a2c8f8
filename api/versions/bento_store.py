"""What a service has on its own disk: versions in its Bento store, and which of them it should serve.

    HOME/                  of one model's services, shared by their workers; on one machine also BENTOML_HOME
    ├── models/…           the Bento store; tag MODEL:VERSION
    ├── current.json       the deployment that was last found good here: it rules while MariaDB is away
    ├── pull.lock          held by the one process that pulls
    └── replacement.json   whose turn it is to be replaced

Never Bento's `latest`: that is the last import.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from db.history.heartbeats import Deployment
from pipelines.artifact.bundle_files import FILES
from utils.settings import Settings


class BentoStore:
    """The disk of the service of `model`. Nothing is made or read before it is asked for."""

    def __init__(self, settings: Settings, model: str) -> None:
        self.model = model
        self.home = settings.bento_home / model

    def folder(self, version: int) -> Path | None:
        """Where the bundle of `version` lies, or None where it is not here. Its hash is still to be checked."""
        folder = self.home / "models" / self.model / str(version)
        return folder if all((folder / name).is_file() for name in FILES) else None

    def tags(self, version: int) -> dict[str, str]:
        """What the registry's tags said of `version` when it was pulled."""
        metadata = self._store().get(f"{self.model}:{version}").info.metadata
        return {str(name): str(value) for name, value in metadata.items()}

    def put(self, version: int, folder: Path, *, tags: dict[str, str]) -> None:
        """Copy the bundle in `folder` here as `version`, in place of any that was here. Hold `pulling` meanwhile."""
        import bentoml

        store, tag = self._store(), f"{self.model}:{version}"
        shutil.rmtree(self.home / "models" / self.model / str(version), ignore_errors=True)
        with bentoml.models.create(tag, metadata=tags, _model_store=store) as stored:
            for name in FILES:
                shutil.copyfile(folder / name, stored.path_of(name))

    def tidy(self, *, keep: Iterable[int]) -> list[int]:
        """Remove all versions but `keep` and the one in current.json; returns them. Hold `pulling` meanwhile."""
        good = self.current()
        kept = {str(version) for version in (*keep, *([good.version] if good else ()))}
        folder = self.home / "models" / self.model
        gone = [version for version in folder.glob("*") if version.name.isdigit() and version.name not in kept]
        for version in gone:
            shutil.rmtree(version, ignore_errors=True)
        return sorted(int(version.name) for version in gone)

    def _store(self) -> Any:
        # BentoML's public functions know only the store of BENTOML_HOME; and it takes a second to import.
        from bentoml._internal.models import ModelStore

        (self.home / "models").mkdir(parents=True, exist_ok=True)
        return ModelStore(self.home / "models")

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Wait until no other process pulls, then keep others waiting."""
        with self._locked("pull.lock"):
            yield

    def current(self) -> Deployment | None:
        """The deployment in current.json, or None before the first."""
        read = _read(self.home / "current.json")
        if not read:
            return None
        return Deployment(int(read["version"]), str(read["sha256"]), datetime.fromisoformat(read["since"]))

    def set_current(self, deployment: Deployment) -> None:
        """Write current.json anew, whole or not at all."""
        if self.current() != deployment:
            _write(self.home / "current.json", {**asdict(deployment), "since": deployment.since.isoformat()})

    def take_turn(self, *, now: float, seconds: float) -> bool:
        """Whether this worker may go to be replaced: not while another's replacement is under way.

        `now` is in seconds of `time.time`; a turn ends with `end_turn`, or after `seconds`.
        """
        with self._locked("replacement.lock"):
            if float(_read(self.home / "replacement.json").get("until", 0)) > now:
                return False
            _write(self.home / "replacement.json", {"until": now + seconds})
            return True

    def end_turn(self) -> None:
        """Let the next worker go: called by every worker that came up."""
        (self.home / "replacement.json").unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
