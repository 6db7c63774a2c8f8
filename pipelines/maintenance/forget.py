"""Forget an entity: delete its rows in every place, and leave a tombstone so that they are not loaded again.

Models, profiles and the counts of monitoring stay, because they summarize many rows and hold no single row. The next
training uses the remaining rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from db.admin import erase
from db.admin.erase import Progress
from db.store.store_tables import store_tables
from pipelines.runs.redact import redact_entity
from pipelines.spec import ModelSpec
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What forgetting an entity has deleted, or would delete.

    forgotten_at: the time of the tombstone, UTC.
    dry_run: whether the rows were only counted.
    row_counts: place → number of the entity's rows. They are deleted unless `dry_run` is true.
    """

    model: str
    forgotten_at: datetime
    dry_run: bool
    row_counts: dict[str, int]


def forget(
    settings: Settings,
    *,
    spec: ModelSpec,
    entity_id: str,
    caused_by: str,
    now: datetime,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ForgetReport:
    """Delete the rows of an entity of the model in every place.

    The tombstone is written first. It then records each finished place, so that a second call after a crash finishes
    the work. Loads of the model wait until the rows in the store are deleted.

    now: UTC.
    dry_run: whether to count the rows only.
    progress: called with the number of log rows that were read so far.

    Raises:
        StackError: a load of the model runs for more than an hour.
        Unreachable, AccessDenied, SettingMissing, NotFound.
    """
    tables = store_tables(spec.store)
    row_counts: dict[str, int] = {}
    with erase.deleting(settings) as connection:

        def clear_store(connection: Connection) -> Iterator[tuple[str, int]]:
            """Delete the entity's rows in the store, unless `dry_run`. Yield each place and the number of rows."""
            for place, table in (("features", tables.features), ("labels", tables.labels), ("latest", tables.latest)):
                yield place, erase.in_table(connection, table.c.entity_id, entity_id, delete=not dry_run)

        if dry_run:
            row_counts |= clear_store(connection)
            row_counts |= _clear_other_places(connection, settings, spec, entity_id, delete=False, progress=progress)
            return ForgetReport(spec.name, now, True, row_counts)
        tombstone_id, earlier_counts = erase.open_tombstone(
            connection, model=spec.name, entity_id=entity_id, places=PLACES, caused_by=caused_by, now=now
        )

        def record(place: str, count: int) -> None:
            row_counts[place] = earlier_counts.get(place, 0) + count
            erase.record_counts(connection, tombstone_id, {**earlier_counts, **row_counts})

        with erase.turn(connection, spec.name):
            for place, count in clear_store(connection):
                record(place, count)
        for place, count in _clear_other_places(connection, settings, spec, entity_id, delete=True, progress=progress):
            record(place, count)
    return ForgetReport(spec.name, now, False, row_counts)


# The spools of services are not in this list: a service drops a spooled row that is older than its entity's tombstone.
PLACES = ("features", "labels", "latest", "predictions", "feedback", "dead_letters", "results", "snapshots", "rejects")


def _clear_other_places(
    connection: Connection,
    settings: Settings,
    spec: ModelSpec,
    entity_id: str,
    *,
    delete: bool,
    progress: Progress | None,
) -> Iterator[tuple[str, int]]:
    """Delete the entity's rows outside the store, if `delete`. Yield each place and the number of rows."""
    predictions, feedback = erase.in_log(connection, spec.name, entity_id, delete=delete, progress=progress)
    yield from (("predictions", predictions), ("feedback", feedback))
    yield "dead_letters", erase.in_dead_letters(connection, spec.name, entity_id, delete=delete)
    columns = erase.results_columns(connection, spec.name)
    yield "results", sum(erase.in_table(connection, column, entity_id, delete=delete) for column in columns)
    yield "snapshots", redact_entity(settings, spec.name, entity_id, delete=delete)
    # A rejects file holds values of rows, but does not say which entity they belong to. So whole files are deleted. A
    # new load of the same file writes them again.
    rejects_files = sorted((settings.rejects / spec.name).glob("*.csv"))
    yield "rejects", len(rejects_files)
    for file in rejects_files if delete else ():
        file.unlink(missing_ok=True)
