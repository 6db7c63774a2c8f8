"""`python -m api.versions.challenger MODEL VERSION SHA256 INSTANCE SOCKET`: one worker's challenger.

`api.versions.shadow_feed` starts the challenger and sends it rows.

The challenger fetches and checks its version like a worker. It reports over the socket that it is ready, or why it is
not. Then it scores the rows from the socket and logs them as `shadow`. While MariaDB is away it drops rows, because no
client waits for them.
"""

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import pymysql
from pydantic import ValidationError

from api.requests.row_type import Row
from api.requests.schemas import Schemas, build_schemas
from api.scoring.predict import LoadedVersion, Origin, predict
from api.versions.bento_store import BentoStore
from api.versions.fetching import DOWNLOAD_SECONDS, download_command, read_version
from api.versions.latency import check_latency
from db import driver
from db.history.heartbeats import Deployment
from db.log import writing
from db.log.prediction_ids import created_at, shadow_id
from db.tombstones import was_forgotten
from pipelines.spec import ModelSpec
from utils.clock import utc_now
from utils.errors import EvergreenError, NotFound, NotNow
from utils.log_setup import configure
from utils.settings import Settings, load_settings

BATCH = 128  # rows inserted together
FEW = 16  # rows scored together, in half a millisecond, before other processes may have the processor
TELL = 5.0  # seconds between two reports of counts
LARGEST = 1 << 22  # bytes of a message
MODEL, ROLE, ENTITY, CREATED = map(writing.LOG_COLUMNS.index, ("model", "role", "entity_id", "created_at"))

ShadowRequest = tuple[str, str, dict[str, Any]]  # the champion's prediction_id, the entity, the features by name


def fetch(settings: Settings, model: str, wanted: Deployment, *, serving: ModelSpec) -> LoadedVersion:
    """The version from the Bento store, or else from MLflow. It passes the same checks as a version that will serve.

    Raises: EvergreenError with the reason why the version can't shadow `serving`.
    """
    bento_store = BentoStore(settings, model)
    try:
        version = read_version(bento_store, wanted)
    except EvergreenError:
        version = None  # damaged: a pull repairs it
    if version is None:
        command = download_command(model, wanted.version)
        download = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
        if download.returncode:
            raise NotFound(what=f"version {wanted.version}", hint=download.stderr.strip().rpartition("\n")[2])
        version = read_version(bento_store, wanted)
    if version is None:
        raise NotFound(what=f"version {wanted.version}", where="the Bento store")
    if reason := incompatibility(version.bundle.spec, serving):
        raise EvergreenError(reason)
    check_latency(version.bundle, serving=None)
    return version


def incompatibility(challenger: ModelSpec, serving: ModelSpec) -> str | None:
    """The reason why `challenger` can't score the requests of `serving` or can't be compared with it, or None.

    The challenger may have fewer features. A feature that requests do not carry would be missing in all of them. The
    comparison would then be with a model that nobody wants to serve.
    """
    for attribute in ("task", "entity"):
        if getattr(challenger, attribute) != getattr(serving, attribute):
            return f"its {attribute} is {getattr(challenger, attribute)}, not {getattr(serving, attribute)}"
    if (challenger.label.column, challenger.label.classes) != (serving.label.column, serving.label.classes):
        return "it predicts another label"
    requested = serving.features.columns
    for name, feature in challenger.features.columns.items():
        if name not in requested:
            return f"it needs the feature {name}, which requests do not carry"
        if feature.type != requested[name].type:
            return f"its feature {name} is {feature.type}, and requests carry it as {requested[name].type}"
    return None


def shadow_rows(
    version: LoadedVersion, requests: Sequence[ShadowRequest], *, schemas: Schemas, instance: UUID
) -> tuple[list[tuple[Any, ...]], int]:
    """The log rows of the predictions of `version` for `requests`, and the number of requests that it would refuse.

    Their latency is the latency of their batch, from the rows to the scores.
    """
    rows: list[tuple[UUID, Row]] = []
    for request_id, entity, features in requests:
        needed = {name: features.get(name) for name in schemas.spec.features.columns}
        try:
            row = schemas.row.validate_python({schemas.spec.entity: entity, **needed})
        except ValidationError:  # outside the challenger's limits, which may be narrower
            continue
        rows.append((UUID(request_id), row))
    if not rows:
        return [], len(requests)
    origin = Origin(time.perf_counter())
    predictions = predict(
        version,
        [row for _, row in rows],
        instance=instance,
        origins=[origin] * len(rows),
        now=utc_now(),
    )
    log_rows = []
    for (champion_id, _), prediction in zip(rows, predictions, strict=True):
        prediction_id = shadow_id(champion_id, version.number)
        log_row = list(prediction.log_row)
        log_row[0], log_row[ROLE], log_row[CREATED] = str(prediction_id), "shadow", created_at(prediction_id)
        log_rows.append(tuple(log_row))
    return log_rows, len(requests) - len(rows)


def receive(channel: socket.socket) -> list[ShadowRequest]:
    """Wait for the next rows and return about a batch of them. Return [] if no row arrives for a while.

    Raises: EOFError if the worker has closed its end.
    """
    poll = select.poll()  # `select.select` takes no descriptor above 1,023, and a worker may have more connections
    poll.register(channel, select.POLLIN)
    if not poll.poll(1000 * TELL):
        return []
    requests = _message(channel)
    if not requests:
        raise EOFError
    with suppress(BlockingIOError):
        while len(requests) < BATCH and (more := _message(channel, socket.MSG_DONTWAIT)):
            requests += more
    return requests


def _message(channel: socket.socket, flags: int = 0) -> list[ShadowRequest]:
    content = channel.recv(LARGEST, flags)
    requests: list[ShadowRequest] = json.loads(content) if content else []  # empty: the worker closed its end
    return requests


def serve(channel: socket.socket, version: LoadedVersion, *, settings: Settings, instance: UUID) -> None:
    """Score the rows from `channel` until the worker has ended."""
    schemas, client = build_schemas(version.bundle.spec), driver.Client(settings)
    counts: Counter[str] = Counter()
    reported_at = time.monotonic()
    while True:
        requests = receive(channel)
        log_rows: list[tuple[Any, ...]] = []
        for few in itertools.batched(requests, FEW):
            few_rows, refused = shadow_rows(version, few, schemas=schemas, instance=instance)
            log_rows += few_rows
            counts["refused"] += refused
            os.sched_yield()  # the lowest priority alone is not enough: see `give_way`
        if log_rows:
            count = _insert(client, log_rows)
            counts.update(scored=count, unlogged=len(log_rows) - count)
        if (new_counts := +counts) and time.monotonic() - reported_at >= TELL:
            report(channel, counts=new_counts)
            counts, reported_at = Counter(), time.monotonic()


def _insert(client: driver.Client, rows: Sequence[tuple[Any, ...]]) -> int:
    """Log `rows` without entities that were forgotten meanwhile. Return the number of logged rows, 0 on failure."""

    def write(link: driver.Link) -> int:
        model = rows[0][MODEL]
        forgotten = writing.forgotten(link, model)
        remaining = [row for row in rows if not was_forgotten(forgotten, model, row[ENTITY], row[CREATED])]
        if remaining:
            writing.insert(link, remaining)
        return len(remaining)

    try:
        return client.run(write)
    except (NotNow, pymysql.Error):  # MariaDB is away, or refuses a row
        return 0


def report(channel: socket.socket, **message: object) -> None:
    """Send `message` to the worker as JSON."""
    channel.send(json.dumps(message).encode())


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal: this process ends when the worker does
    configure()
    model, version, sha256, instance, descriptor = sys.argv[1:]
    settings = load_settings()
    with socket.socket(fileno=int(descriptor)) as channel:
        serving = ModelSpec.parse(json.loads(channel.recv(LARGEST)), file="spec.json")
        wanted = Deployment(int(version), sha256, utc_now())
        with suppress(EOFError, OSError):  # the worker has ended
            try:
                challenger = fetch(settings, model, wanted, serving=serving)
            except (EvergreenError, subprocess.TimeoutExpired) as error:
                report(channel, refused=str(error)[:1000])
                return 1
            report(channel, ready=True)
            serve(channel, challenger, settings=settings, instance=UUID(instance))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
