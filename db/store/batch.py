"""An open load: rows are staged, compared with what the store says, and added where they are new.

A second connection fills its temporary table while the first adds from its own, for MariaDB works for one connection
with one thread; the parts are added in their order, by turns. `db.store.appending` opens a batch and says what becomes
of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
from sqlalchemy import Connection, Table, func, insert, select, text, update

from db.store import online
from db.store.schema import StoreSchema
from db.store.staging import Stage
from db.store.store_tables import load_lock, store_tables
from db.tables import load_batch
from db.tombstones import leave_out, tombstones
from utils.errors import StackError

ISOLATION = "READ COMMITTED"  # comparing with the store must not lock its rows


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did. `rows` were read; the other counts are rows of the features and the labels table together.

    `forgotten` rows were left out, for their entity was forgotten.
    `batch_id` and `commit_seq` are None where nothing was new: such a load leaves no trace in the database.
    """

    model: str
    source: str
    rows: int = 0
    features_added: int = 0
    labels_added: int = 0
    unchanged: int = 0
    corrections: int = 0
    rejects: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)  # refused rows by column and reason
    rejects_file: Path | None = None
    dry_run: bool = False
    forgotten: int = 0
    seconds: float = 0.0
    batch_id: int | None = None
    commit_seq: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a load come from. `now` is the moment from which its corrections are known (UTC).

    `available_at_given`: the rows carry their own times of availability; otherwise they hold when a new row was known.
    `dry_run`: rows are compared with the store, and none is added.
    """

    source: str
    content_sha256: str
    caused_by: str
    now: datetime
    available_at_given: bool = False
    rejects: int = 0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """`count` rows of a table, staged and ready to be added. `left_out`: those of forgotten entities."""

    connection: Connection
    stage: Stage
    count: int
    left_out: int


class Batch:
    """An open load. `add` may be called many times; nothing is visible before `open_batch` ends well."""

    def __init__(self, connection: Connection, schema: StoreSchema, origin: Origin, folder: Path) -> None:
        self._connection, self._schema, self._origin, self._folder = connection, schema, origin, folder
        self._tables = store_tables(schema)
        # Whoever forgets an entity now waits for this load's turn to end, and deletes what it brought.
        self._tombstones = tombstones(connection, schema.model)
        self._owner = connection.scalar(text("SELECT CONNECTION_ID()"))
        self._lanes: list[tuple[Connection, dict[Table, Stage]]] = [(connection, {})]
        self._prepared = 0
        self._report = LoadReport(schema.model, origin.source, rejects=origin.rejects, dry_run=origin.dry_run)

    def prepare(self, *, features: pa.Table | None = None, labels: pa.Table | None = None) -> dict[Table, Prepared]:
        """Stage rows for `add`, with the columns entity_id, event_time, available_at and those of the schema.

        A second thread may prepare the next part while one is added, but not the part after that: there are two lanes.
        Raises: DataRefused where MariaDB would change a value.
        """
        connection, stages = self._lane(self._prepared % 2)
        self._prepared += 1
        prepared = {}
        for table, rows in ((self._tables.features, features), (self._tables.labels, labels)):
            if rows is not None and rows.num_rows:
                stays, left_out = leave_out(self._tombstones, self._schema.model, rows)
                if table not in stages:
                    stages[table] = Stage(connection, table)
                stages[table].load(stays, self._folder)
                prepared[table] = Prepared(connection, stages[table], stays.num_rows, left_out)
        return prepared

    def _lane(self, number: int) -> tuple[Connection, dict[Table, Stage]]:
        if number == len(self._lanes):
            second = self._connection.engine.connect().execution_options(isolation_level=ISOLATION)
            self._lanes.append((second, {}))
        return self._lanes[number]

    def close(self) -> None:
        """Give up what the second connection has not committed; until then nobody could remove the batch's rows."""
        for connection, _ in self._lanes[1:]:
            connection.close()

    def add(self, prepared: Mapping[Table, Prepared]) -> None:
        """Append rows in one transaction.

        (entity_id, event_time, available_at) is unique in each table. A row is left out where the store says the same;
        where it says something else the row is a correction, available from the load on unless its time was given.
        Raises: DataRefused where a row contradicts one of this load, or one with the same given time of availability.
        """
        report = replace(self._report, rows=self._report.rows + max((p.count for p in prepared.values()), default=0))
        for table, rows in prepared.items():
            added, same, changed = self._append(rows)
            counted = "features_added" if table is self._tables.features else "labels_added"
            report = _plus(report, unchanged=same, corrections=changed, forgotten=rows.left_out, **{counted: added})
        for connection in {rows.connection for rows in prepared.values()}:
            self._check_turn(connection)
            connection.commit()
        self._report = replace(report, batch_id=self._report.batch_id)

    def _check_turn(self, connection: Connection) -> None:
        """That the first connection, which holds the lock, lives. Whoever got the lock after it waits for these rows
        until they are committed, and then removes them."""
        lock = {"name": load_lock(self._schema.model), "owner": self._owner}
        if connection.scalar(text("SELECT IS_USED_LOCK(:name) = :owner"), lock) != 1:
            connection.rollback()
            raise StackError(f"{self._schema.model}: the load lost its connection, and with it its turn: run it again")

    def _append(self, rows: Prepared) -> tuple[int, int, int]:
        given, batch_id = self._origin.available_at_given, self._report.batch_id
        same, changed = rows.stage.compare(given=given, batch_id=batch_id, source=self._origin.source)
        if same == rows.count or self._origin.dry_run:
            return rows.count - same, same, changed
        batch_id = batch_id or self._open(rows.connection)
        return rows.stage.insert(batch_id=batch_id, now=self._origin.now, given=given), same, changed

    def _open(self, connection: Connection) -> int:
        """Record the batch, at its first new row."""
        origin = self._origin
        opened = insert(load_batch).values(
            model=self._schema.model,
            source=origin.source[-500:],
            content_sha256=origin.content_sha256,
            rejects=origin.rejects,
            state="open",
            caused_by=origin.caused_by,
            opened_at=origin.now,
        )
        batch_id = int(connection.execute(opened).lastrowid)
        self._report = replace(self._report, batch_id=batch_id)
        return batch_id

    def record(self, **found: object) -> None:
        """Write down what is known at the end only: `rejects`, `content_sha256`."""
        self._connection.execute(
            update(load_batch).where(load_batch.c.batch_id == self._report.batch_id).values(**found)
        )
        self._connection.commit()

    def commit(self) -> LoadReport:
        """Make the batch visible, the online store with it; where nothing was new there is nothing to do."""
        report, model = self._report, self._schema.model
        if report.batch_id is None:
            return report
        if report.features_added:
            online.refresh(self._connection, self._tables, report.batch_id)
        newest = select(func.coalesce(func.max(load_batch.c.commit_seq), 0)).where(load_batch.c.model == model)
        report = replace(report, commit_seq=int(self._connection.scalar(newest) or 0) + 1)
        self._connection.execute(
            update(load_batch)
            .where(load_batch.c.batch_id == report.batch_id)
            .values(
                state="committed",
                commit_seq=report.commit_seq,
                feature_rows=report.features_added,
                label_rows=report.labels_added,
                unchanged_rows=report.unchanged,
                committed_at=self._origin.now,
            )
        )
        self._connection.commit()
        return report


def _plus(report: LoadReport, **counts: int) -> LoadReport:
    return replace(report, **{name: getattr(report, name) + count for name, count in counts.items()})
