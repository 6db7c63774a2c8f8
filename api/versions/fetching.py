"""Fetching one wanted version: its pull in a separate process, the result of the pull, and the next retry."""

import json
import logging
import subprocess
import sys
import tempfile
import time

from api.scoring.predict import LoadedVersion
from api.versions.bento_store import BentoStore
from db.history.heartbeats import Deployment
from pipelines.artifact.bundle import read_bundle
from pipelines.artifact.profile import seen_categories
from utils.clock import utc_now
from utils.errors import EvergreenError, IntegrityError, Unreachable

DOWNLOAD_SECONDS = 180.0
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0  # seconds between two tries

log = logging.getLogger(__name__)


def read_version(bento_store: BentoStore, deployment: Deployment) -> LoadedVersion | None:
    """The version from the Bento store, after checks of its hash and golden rows. None if it is not in the store.

    Raises: IntegrityError, SpecInvalid.
    """
    folder = bento_store.folder(deployment.version)
    if folder is None:
        return None
    try:
        bundle = read_bundle(folder, sha256=deployment.sha256)
        profile = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
        tags = bento_store.tags(deployment.version)
    except EvergreenError:
        raise
    except Exception as error:  # damaged files: their parsers raise all kinds of errors
        name = f"model folder {folder.name}"
        raise IntegrityError(what=name, expected="a whole bundle", found=type(error).__name__) from error
    return LoadedVersion(
        model=bento_store.model,
        number=deployment.version,
        bundle=bundle,
        categories=seen_categories(profile),
        tags=tags,
        deployed_at=deployment.since,
        serving_since=utc_now(),
    )


def download_command(model: str, version: int) -> list[str]:
    """The command that pulls `version` into this service's Bento store. If it fails, its last line has the reason."""
    return [sys.executable, "-m", "api.versions.download", model, str(version)]


class Attempt:
    """The attempt to fetch `wanted`.

    wanted: the deployment to serve.
    refusal: why it can't be served, or None. Retries go on with growing pauses.

    A short absence of MLflow is no refusal. The version is fetched when MLflow is back.
    """

    def __init__(self, model: str, wanted: Deployment) -> None:
        self.wanted = wanted
        self.refusal: str | None = None
        self._model = model
        self._problem: str | None = None
        self._download: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this; an unread pipe would stop the pull
        self._deadline = self._not_before = 0.0
        self._pause = FIRST_PAUSE
        self._downloaded = False

    def is_busy(self) -> bool:
        """Whether a pull is running or the pause after a failure has not ended."""
        if self._download is not None:
            if self._download.poll() is None:
                if time.monotonic() > self._deadline:
                    self._download.kill()
                return True
            self._finish(self._download.returncode)
        return time.monotonic() < self._not_before

    def fetch_or_refuse(self, problem: str | None) -> None:
        """Pull the version, whose files are missing (None) or have a `problem`. Refuse it if it was just pulled."""
        if self._downloaded:
            self._downloaded = False
            self._fail(problem or "its files vanished from the Bento store", refuse=True)
            return
        self._problem = problem
        self._errors.truncate(0)
        self._deadline = time.monotonic() + DOWNLOAD_SECONDS
        command = download_command(self._model, self.wanted.version)
        self._download = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._errors)

    def refuse(self, reason: str) -> None:
        """Refuse a version with good files that must not serve, and retry later."""
        self._fail(reason, refuse=True)

    def abandon(self) -> None:
        """End a running pull."""
        if self._download is not None and self._download.poll() is None:
            self._download.terminate()
            self._download.wait()
        self._errors.close()

    def _finish(self, code: int) -> None:
        self._download = None
        if code == 0:
            self._downloaded = True
            return
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"the pull ended with code {code}"
        if code == Unreachable.exit_code and self._problem is None:
            self._fail(reason, refuse=False)
        else:
            self._fail("; ".join(filter(None, (self._problem, reason))), refuse=True)

    def _fail(self, reason: str, *, refuse: bool) -> None:
        if refuse:
            self.refusal = reason
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        log.warning("%s version %d: %s", self._model, self.wanted.version, reason)
