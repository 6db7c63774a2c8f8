"""The disk of a service: the versions in its Bento store, and the deployment that it serves.

    HOME/                  of one model's services, shared by their workers; on one machine also BENTOML_HOME
    ├── models/…           the Bento store; tag MODEL:VERSION
    ├── current.json       the last good deployment on this disk, which counts while MariaDB is away
    ├── pull.lock          held by the one process that pulls
    └── replacement.json   until when one worker's replacement blocks other replacements

Bento's tag `latest` is not used: it means the last import.
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
    """The disk of the service of `model`. Nothing is created or read before the first call."""

    def __init__(self, settings: Settings, model: str) -> None:
        self.model = model
        self.home = settings.bento_home / model

    def folder(self, version: int) -> Path | None:
        """The folder of the bundle of `version`, or None if it is not on this disk. The caller checks its hash."""
        folder = self.home / "models" / self.model / str(version)
        return folder if all((folder / name).is_file() for name in FILES) else None

    def tags(self, version: int) -> dict[str, str]:
        """The registry's tags of `version` at the time of its pull."""
        metadata = self._store().get(f"{self.model}:{version}").info.metadata
        return {str(name): str(value) for name, value in metadata.items()}

    def put(self, version: int, folder: Path, *, tags: dict[str, str]) -> None:
        """Copy the bundle in `folder` into the store as `version`, in place of an older copy. Hold `pulling`."""
        import bentoml

        store, tag = self._store(), f"{self.model}:{version}"
        shutil.rmtree(self.home / "models" / self.model / str(version), ignore_errors=True)
        with bentoml.models.create(tag, metadata=tags, _model_store=store) as stored:
            for name in FILES:
                shutil.copyfile(folder / name, stored.path_of(name))

    def tidy(self, *, keep: Iterable[int]) -> list[int]:
        """Remove all versions except `keep` and the one in current.json. Return the removed versions.

        Hold `pulling` meanwhile.
        """
        current = self.current()
        names = {str(version) for version in (*keep, *([current.version] if current else ()))}
        folder = self.home / "models" / self.model
        surplus = [version for version in folder.glob("*") if version.name.isdigit() and version.name not in names]
        for version in surplus:
            shutil.rmtree(version, ignore_errors=True)
        return sorted(int(version.name) for version in surplus)

    def _store(self) -> Any:
        # BentoML's public functions use only the store of BENTOML_HOME. The import takes a second.
        from bentoml._internal.models import ModelStore

        (self.home / "models").mkdir(parents=True, exist_ok=True)
        return ModelStore(self.home / "models")

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Wait until no other process pulls. Other processes wait until this context ends."""
        with self._locked("pull.lock"):
            yield

    def current(self) -> Deployment | None:
        """The deployment in current.json, or None before the first one."""
        content = _read(self.home / "current.json")
        if not content:
            return None
        return Deployment(int(content["version"]), str(content["sha256"]), datetime.fromisoformat(content["since"]))

    def set_current(self, deployment: Deployment) -> None:
        """Replace current.json atomically."""
        if self.current() != deployment:
            _write(self.home / "current.json", {**asdict(deployment), "since": deployment.since.isoformat()})

    def take_turn(self, *, now: float, seconds: float) -> bool:
        """Whether this worker may end and be replaced. Only one worker is replaced at a time.

        `now` is in seconds of `time.time`. The turn ends with `end_turn`, or after `seconds`.
        """
        with self._locked("replacement.lock"):
            if float(_read(self.home / "replacement.json").get("until", 0)) > now:
                return False
            _write(self.home / "replacement.json", {"until": now + seconds})
            return True

    def end_turn(self) -> None:
        """Allow the next replacement. Every worker calls it once it has started."""
        (self.home / "replacement.json").unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
