"""The version that a worker serves, and the thread that follows the deployments.

About once a second the thread reads the wanted version, fetches and checks a new one, swaps it in, and reports.
"""

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from api.log.spool import Depth
from api.prometheus import Numbers
from api.requests.reject_counts import RejectCounts
from api.requests.schemas import same_requests
from api.scoring.predict import LoadedVersion
from api.versions.bento_store import BentoStore
from api.versions.fetching import Attempt, read_version
from api.versions.latency import check_latency
from api.versions.shadow_feed import Shadow
from db import driver
from db.history import heartbeats
from db.history.heartbeats import Deployment, Heartbeat
from pipelines.spec import ModelSpec
from utils.clock import utc_now
from utils.errors import EvergreenError, NotNow, TooSlow
from utils.settings import Settings

DEPLOYMENT_POLL = 1.0  # seconds between two polls
TURN = 60.0  # seconds for the replacement of one worker before the next one may end

log = logging.getLogger(__name__)


class ModelSlot:
    """The place of the version that serves.

    version: None before the first model. It is replaced as a whole, so a batch keeps the version that it began with.
    instance_id: this worker's id in heartbeats and log rows.
    shadow: this worker's challenger.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        spec: ModelSpec,
        url: str,
        instance_id: UUID,
        rejects: RejectCounts,
        numbers: Numbers,
        spool_depth: Callable[[], Depth],
    ) -> None:
        self.version: LoadedVersion | None = None
        self.instance_id = instance_id
        self._spec, self._url, self._rejects = spec, url, rejects
        self._numbers, self._spool_depth = numbers, spool_depth
        self._bento_store = BentoStore(settings, spec.name)
        self._client = driver.Client(settings)
        self._started_at = utc_now()
        self._wanted: Deployment | None = None
        self._serving: Deployment | None = None
        self._attempt: Attempt | None = None
        self.shadow = Shadow(spec, self.instance_id)
        self._challenger: Deployment | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-slot", daemon=True)

    def start(self) -> None:
        """Serve the last good version on this disk, if there is one. Then follow the deployments in a thread."""
        self._wanted = self._bento_store.current()
        self._fall_back()
        self._bento_store.end_turn()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=DEPLOYMENT_POLL + 4 * driver.MARIADB_SECONDS)
        if self._attempt is not None:
            self._attempt.abandon()
        self.shadow.stop()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._poll()
                if self._wanted is not None and self._wanted != self._serving:
                    self._try_to_serve(self._wanted)
                self._shadow()
                self._report()
            except Exception:  # the thread must survive any error
                log.exception("following the deployments failed; retrying")
            self._stopped.wait(DEPLOYMENT_POLL)
        with suppress(NotNow):
            self._write_rejects()

    def _poll(self) -> None:
        """Read the wanted deployments. The last one stays wanted while MariaDB is away or has no deployment."""
        with suppress(NotNow):
            wanted, self._challenger = self._client.run(lambda link: heartbeats.followed(link, self._spec.name))
            self._wanted = wanted or self._wanted

    def _shadow(self) -> None:
        """Run the challenger, unless it is the serving version."""
        serving, challenger = self._serving, self._challenger
        is_other = serving is not None and challenger is not None and challenger.version != serving.version
        self.shadow.follow(challenger if is_other else None)

    def _try_to_serve(self, wanted: Deployment) -> None:
        """Take one step towards serving `wanted`: load it, fetch it first, or wait after a refusal."""
        if self._attempt is None or self._attempt.wanted != wanted:
            self._attempt = Attempt(self._spec.name, wanted)
        if self._attempt.is_busy():
            return
        try:
            version = read_version(self._bento_store, wanted)
            if version is not None:
                self._check_latency(version)
        except TooSlow as error:
            self._attempt.refuse(str(error))
        except EvergreenError as error:
            self._attempt.fetch_or_refuse(str(error))
        else:
            self._attempt.fetch_or_refuse(None) if version is None else self._serve(wanted, version)
        if self._attempt and self._attempt.refusal:
            self._fall_back()

    def _fall_back(self) -> None:
        """If no version serves yet, serve the last good one on this disk."""
        current = self._bento_store.current()
        if self.version is not None or current is None:
            return
        try:
            if version := read_version(self._bento_store, current):
                self._serve(current, version)  # its latency was checked before its first deployment
        except EvergreenError as error:
            log.warning("version %d on disk can't be served: %s", current.version, error)

    def _check_latency(self, version: LoadedVersion) -> None:
        """Check the latency of `version`. This also warms it up for single rows and for batches.

        Raises: TooSlow.
        """
        serving = self.version.bundle if self.version else None
        comparable = serving is not None and same_requests(version.bundle.spec, serving.spec)
        check_latency(version.bundle, serving=serving if comparable else None)

    def _serve(self, wanted: Deployment, version: LoadedVersion) -> None:
        """Serve `version` from the next batch on. If it takes other requests than this worker, end this worker."""
        self._bento_store.set_current(wanted)
        if not same_requests(version.bundle.spec, self._spec):
            self._be_replaced(version)
            return
        is_first = self.version is None
        self.version, self._serving, self._attempt = version, wanted, None
        self._numbers.set_version(version.number, deployed_at=version.deployed_at, fitted_until=version.fitted_until)
        log.info("%s: serving version %d", self._spec.name, wanted.version)
        if is_first:  # objects from imports live forever, and each walk of the garbage collector over them takes 90 ms
            gc.collect()
            gc.freeze()

    def _be_replaced(self, version: LoadedVersion) -> None:
        """End this worker if no other worker is being replaced. Its replacement takes the requests of `version`."""
        if self._bento_store.take_turn(now=time.time(), seconds=TURN):
            log.warning("version %d takes other requests: this worker ends and is replaced", version.number)
            self._stopped.set()
            os.kill(os.getpid(), signal.SIGTERM)

    def _report(self) -> None:
        """Write the heartbeat and the counts of refused requests, and publish the spool's metrics."""
        refused = self._attempt.wanted.version if self._attempt and self._attempt.refusal else None
        reason = self._attempt.refusal[:1000] if self._attempt and self._attempt.refusal else None
        depth = self._spool_depth()
        age_seconds = (utc_now() - depth.oldest).total_seconds() if depth.oldest else 0.0
        self._numbers.set_spool(depth.rows, age_seconds, depth.filled)
        heartbeat = Heartbeat(
            instance_id=self.instance_id,
            model=self._spec.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            url=self._url,
            started_at=self._started_at,
            version=self.version.number if self.version else None,
            serving_since=self.version.serving_since if self.version else None,
            refused_version=refused,
            refused_reason=reason,
            spool_rows=depth.rows,
            spool_oldest=depth.oldest,
            shadow_version=self.shadow.version,
            shadow_refused=self.shadow.refusal,
        )
        with suppress(NotNow):
            self._client.run(lambda link: heartbeats.beat(link, heartbeat))
            self._write_rejects()

    def _write_rejects(self) -> None:
        counts = self._rejects.take()
        if not counts:
            return
        try:
            self._client.run(lambda link: heartbeats.add_rejects(link, self._spec.name, counts))
        except NotNow:
            self._rejects.give_back(counts)
            raise
