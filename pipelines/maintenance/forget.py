"""Forget: delete an entity's rows everywhere, leave a tombstone, and keep its rows from being loaded again.

Models, reference profiles and monitoring's counts stay: they are about all rows together, and hold none. The next
training learns from what is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from db.admin import erase as rows
from db.admin.erase import Progress
from db.store.store_tables import store_tables
from pipelines.runs.redact import redact_entity
from pipelines.spec import ModelSpec
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many rows of the entity were found, by place; they are deleted unless it was a `dry_run`."""

    model: str
    forgotten_at: datetime
    dry_run: bool
    found: dict[str, int]


def forget(
    settings: Settings,
    *,
    spec: ModelSpec,
    entity_id: str,
    caused_by: str,
    now: datetime,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Forgotten:
    """Delete the rows of an entity of the model in every place that holds some; `now` is UTC.

    The tombstone comes first and names each place once it is done, so doing this again after a crash finishes it.
    Loads of the model wait meanwhile. `progress` is told how many rows of the log have been looked at.

    Raises: StackError where a load keeps its turn for an hour; Unreachable, AccessDenied, SettingMissing, NotFound.
    """
    tables = store_tables(spec.store)
    found: dict[str, int] = {}
    with rows.deleting(settings) as connection:

        def in_store(connection: Connection) -> Iterator[tuple[str, int]]:
            for name, table in (("features", tables.features), ("labels", tables.labels), ("latest", tables.latest)):
                yield name, rows.in_table(connection, table.c.entity_id, entity_id, delete=not dry_run)

        if dry_run:
            found |= in_store(connection)
            found |= _elsewhere(connection, settings, spec, entity_id, delete=False, progress=progress)
            return Forgotten(spec.name, now, True, found)
        tombstone, earlier = rows.open_tombstone(
            connection, model=spec.name, entity_id=entity_id, places=PLACES, caused_by=caused_by, now=now
        )

        def note(place: str, count: int) -> None:
            found[place] = earlier.get(place, 0) + count
            rows.record_found(connection, tombstone, {**earlier, **found})

        with rows.turn(connection, spec.name):
            for place, count in in_store(connection):
                note(place, count)
        for place, count in _elsewhere(connection, settings, spec, entity_id, delete=True, progress=progress):
            note(place, count)
    return Forgotten(spec.name, now, False, found)


# Spools of services are not among them: what is older than its entity's tombstone leaves them unlogged.
PLACES = ("features", "labels", "latest", "predictions", "feedback", "dead_letters", "results", "snapshots", "rejects")


def _elsewhere(
    connection: Connection,
    settings: Settings,
    spec: ModelSpec,
    entity_id: str,
    *,
    delete: bool,
    progress: Progress | None,
) -> Iterator[tuple[str, int]]:
    """Each place outside the store, with how many rows of the entity were there."""
    predictions, feedback = rows.in_log(connection, spec.name, entity_id, delete=delete, progress=progress)
    yield from (("predictions", predictions), ("feedback", feedback))
    yield "dead_letters", rows.in_dead_letters(connection, spec.name, entity_id, delete=delete)
    columns = rows.results_columns(connection, spec.name)
    yield "results", sum(rows.in_table(connection, column, entity_id, delete=delete) for column in columns)
    yield "snapshots", redact_entity(settings, spec.name, entity_id, delete=delete)
    # One row of such a file is one value of somebody, and nothing in it says whose: a load makes it anew.
    files = sorted((settings.rejects / spec.name).glob("*.csv"))
    yield "rejects", len(files)
    for file in files if delete else ():
        file.unlink(missing_ok=True)
