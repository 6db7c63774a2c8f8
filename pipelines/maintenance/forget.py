"""Forget: delete an entity's rows everywhere, leave a tombstone, and keep its rows from being loaded again.

Models, profiles and monitoring's counts stay: they summarize all rows and hold no single row. The next training learns
from the remaining rows.
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
    """The result of forgetting an entity.

    forgotten_at: UTC.
    dry_run: whether the rows were only counted.
    found: the number of the entity's rows, by place. They are deleted unless `dry_run` is true.
    """

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
    """Delete the rows of an entity of the model in every place. `now` is UTC.

    The tombstone is written first and records each finished place, so a second call after a crash finishes the work.
    Loads of the model wait meanwhile. `progress` gets the number of rows of the log that were examined.

    Raises:
        StackError: a load holds the model's lock for an hour.
        Unreachable, AccessDenied, SettingMissing, NotFound.
    """
    tables = store_tables(spec.store)
    row_counts: dict[str, int] = {}
    with rows.deleting(settings) as connection:

        def in_store(connection: Connection) -> Iterator[tuple[str, int]]:
            for name, table in (("features", tables.features), ("labels", tables.labels), ("latest", tables.latest)):
                yield name, rows.in_table(connection, table.c.entity_id, entity_id, delete=not dry_run)

        if dry_run:
            row_counts |= in_store(connection)
            row_counts |= _outside_store(connection, settings, spec, entity_id, delete=False, progress=progress)
            return Forgotten(spec.name, now, True, row_counts)
        tombstone, earlier_counts = rows.open_tombstone(
            connection, model=spec.name, entity_id=entity_id, places=PLACES, caused_by=caused_by, now=now
        )

        def record(place: str, count: int) -> None:
            row_counts[place] = earlier_counts.get(place, 0) + count
            rows.record_found(connection, tombstone, {**earlier_counts, **row_counts})

        with rows.turn(connection, spec.name):
            for place, count in in_store(connection):
                record(place, count)
        for place, count in _outside_store(connection, settings, spec, entity_id, delete=True, progress=progress):
            record(place, count)
    return Forgotten(spec.name, now, False, row_counts)


# Spools of services are not places: a service drops spooled rows that are older than their entity's tombstone.
PLACES = ("features", "labels", "latest", "predictions", "feedback", "dead_letters", "results", "snapshots", "rejects")


def _outside_store(
    connection: Connection,
    settings: Settings,
    spec: ModelSpec,
    entity_id: str,
    *,
    delete: bool,
    progress: Progress | None,
) -> Iterator[tuple[str, int]]:
    """Each place outside the store, with the number of the entity's rows in it."""
    predictions, feedback = rows.in_log(connection, spec.name, entity_id, delete=delete, progress=progress)
    yield from (("predictions", predictions), ("feedback", feedback))
    yield "dead_letters", rows.in_dead_letters(connection, spec.name, entity_id, delete=delete)
    columns = rows.results_columns(connection, spec.name)
    yield "results", sum(rows.in_table(connection, column, entity_id, delete=delete) for column in columns)
    yield "snapshots", redact_entity(settings, spec.name, entity_id, delete=delete)
    # A row of a rejects file is one entity's value, but the file does not name the entity. So delete whole files: a
    # load writes them again.
    files = sorted((settings.rejects / spec.name).glob("*.csv"))
    yield "rejects", len(files)
    for file in files if delete else ():
        file.unlink(missing_ok=True)
