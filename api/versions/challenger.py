"""`python -m api.versions.challenger MODEL VERSION SHA256 INSTANCE SOCKET`: one worker's challenger.

`api.versions.shadow_feed` starts it and sends it rows.

It fetches and checks its version as a worker does, tells over the socket that it is ready or why it is not, then scores
the rows that come and logs them as `shadow`. While MariaDB is away rows are dropped: they are nobody's answers.
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
FEW = 16  # rows scored together, in half a millisecond, before others may have the processor
TELL = 5.0  # seconds between two counts
LARGEST = 1 << 22  # bytes of a message
MODEL, ROLE, ENTITY, CREATED = map(writing.LOG_COLUMNS.index, ("model", "role", "entity_id", "created_at"))

Asked = tuple[str, str, dict[str, Any]]  # the champion's prediction_id, the entity, the features by name


def fetch(settings: Settings, model: str, wanted: Deployment, *, serving: ModelSpec) -> LoadedVersion:
    """The version, from the Bento store or else from MLflow, checked as one that is to serve.

    Raises: EvergreenError with the reason why it can't shadow `serving`.
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
    if reason := unlike(version.bundle.spec, serving):
        raise EvergreenError(reason)
    check_latency(version.bundle, serving=None)
    return version


def unlike(challenger: ModelSpec, serving: ModelSpec) -> str | None:
    """Why `challenger` can't score the requests of `serving`, or can't be compared with it; None where it can.

    It may have fewer features. One that requests do not carry would be missing in each of them, and the comparison
    would be with a model that nobody wants to serve.
    """
    for what in ("task", "entity"):
        if getattr(challenger, what) != getattr(serving, what):
            return f"its {what} is {getattr(challenger, what)}, not {getattr(serving, what)}"
    if (challenger.label.column, challenger.label.classes) != (serving.label.column, serving.label.classes):
        return "it predicts another label"
    asked = serving.features.columns
    for name, feature in challenger.features.columns.items():
        if name not in asked:
            return f"it needs the feature {name}, which requests do not carry"
        if feature.type != asked[name].type:
            return f"its feature {name} is {feature.type}, and requests carry it as {asked[name].type}"
    return None


def shadow_rows(
    version: LoadedVersion, asked: Sequence[Asked], *, schemas: Schemas, instance: UUID
) -> tuple[list[tuple[Any, ...]], int]:
    """Rows of the log for what `version` predicts for `asked`, and how many of them it would have refused to answer.

    Their latency is that of their batch, from the rows to the scores.
    """
    rows: list[tuple[UUID, Row]] = []
    for champion_id, entity, features in asked:
        known = {name: features.get(name) for name in schemas.spec.features.columns}
        try:
            row = schemas.row.validate_python({schemas.spec.entity: entity, **known})
        except ValidationError:  # outside its limits, which may be narrower
            continue
        rows.append((UUID(champion_id), row))
    if not rows:
        return [], len(asked)
    origin = Origin(time.perf_counter())
    scored = predict(
        version,
        [row for _, row in rows],
        instance=instance,
        origins=[origin] * len(rows),
        now=utc_now(),
    )
    made = []
    for (champions, _), prediction in zip(rows, scored, strict=True):
        mine = shadow_id(champions, version.number)
        row_of_log = list(prediction.log_row)
        row_of_log[0], row_of_log[ROLE], row_of_log[CREATED] = str(mine), "shadow", created_at(mine)
        made.append(tuple(row_of_log))
    return made, len(asked) - len(rows)


def received(channel: socket.socket) -> list[Asked]:
    """The rows that have come, up to about a batch; [] where none come for a while.

    Raises: EOFError where no more will come.
    """
    waiting = select.poll()  # `select.select` takes no descriptor above 1,023, and a worker may have more connections
    waiting.register(channel, select.POLLIN)
    if not waiting.poll(1000 * TELL):
        return []
    asked = _message(channel)
    if not asked:
        raise EOFError
    with suppress(BlockingIOError):
        while len(asked) < BATCH and (more := _message(channel, socket.MSG_DONTWAIT)):
            asked += more
    return asked


def _message(channel: socket.socket, flags: int = 0) -> list[Asked]:
    content = channel.recv(LARGEST, flags)
    rows: list[Asked] = json.loads(content) if content else []  # empty: the worker closed its end
    return rows


def serve(channel: socket.socket, version: LoadedVersion, *, settings: Settings, instance: UUID) -> None:
    """Score what comes until the worker is gone."""
    schemas, client = build_schemas(version.bundle.spec), driver.Client(settings)
    counts: Counter[str] = Counter()
    told = time.monotonic()
    while True:
        asked = received(channel)
        made: list[tuple[Any, ...]] = []
        for few in itertools.batched(asked, FEW):
            scored, refused = shadow_rows(version, few, schemas=schemas, instance=instance)
            made += scored
            counts["refused"] += refused
            os.sched_yield()  # the lowest priority alone is not enough: see `give_way`
        if made:
            logged = _logged(client, made)
            counts.update(scored=logged, unlogged=len(made) - logged)
        if (new := +counts) and time.monotonic() - told >= TELL:
            tell(channel, counts=new)
            counts, told = Counter(), time.monotonic()


def _logged(client: driver.Client, rows: Sequence[tuple[Any, ...]]) -> int:
    """How many of `rows` are logged: none of them or all but those of entities that were forgotten meanwhile."""

    def write(link: driver.Link) -> int:
        model = rows[0][MODEL]
        forgotten = writing.forgotten(link, model)
        kept = [row for row in rows if not was_forgotten(forgotten, model, row[ENTITY], row[CREATED])]
        if kept:
            writing.insert(link, kept)
        return len(kept)

    try:
        return client.run(write)
    except (NotNow, pymysql.Error):  # MariaDB is away, or refuses one of them
        return 0


def tell(channel: socket.socket, **what: object) -> None:
    channel.send(json.dumps(what).encode())


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the worker's end is this one's, too
    configure()
    model, version, sha256, instance, descriptor = sys.argv[1:]
    settings = load_settings()
    with socket.socket(fileno=int(descriptor)) as channel:
        serving = ModelSpec.parse(json.loads(channel.recv(LARGEST)), file="spec.json")
        wanted = Deployment(int(version), sha256, utc_now())
        with suppress(EOFError, OSError):  # the worker is gone
            try:
                challenger = fetch(settings, model, wanted, serving=serving)
            except (EvergreenError, subprocess.TimeoutExpired) as error:
                tell(channel, refused=str(error)[:1000])
                return 1
            tell(channel, ready=True)
            serve(channel, challenger, settings=settings, instance=UUID(instance))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
