"""An open load: rows are staged, compared with the store, and added if they are new.

MariaDB uses one thread for each connection. So a second connection fills its temporary table while the first one adds
rows from its own. The parts are added in order, alternating connections. `db.store.appending` opens and ends batches.
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

ISOLATION = "READ COMMITTED"  # a comparison with the store must not lock its rows


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of a load. Counts without a table's name are rows of both tables together.

    rows: the rows that were read.
    unchanged: rows that the store already has.
    corrections: rows that correct a row of the store.
    rejects: refused rows, with their counts in `reasons` and their list in `rejects_file`.
    forgotten: rows left out because their entity was forgotten.
    batch_id, commit_seq: None if nothing was new. Then the load leaves no trace in the database.
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
    """The origin of a load's rows.

    now: the availability time of corrections, UTC.
    available_at_given: the rows carry their own availability times. Otherwise `available_at` counts for new rows only.
    dry_run: rows are compared with the store, but not added.
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
    """`count` staged rows of a table, ready to be added. `left_out` counts rows of forgotten entities."""

    connection: Connection
    stage: Stage
    count: int
    left_out: int


class Batch:
    """An open load. `add` may be called many times. Readers see nothing before `commit`."""

    def __init__(self, connection: Connection, schema: StoreSchema, origin: Origin, folder: Path) -> None:
        self._connection, self._schema, self._origin, self._folder = connection, schema, origin, folder
        self._tables = store_tables(schema)
        # `forget` waits for the end of this load and then deletes its rows too.
        self._tombstones = tombstones(connection, schema.model)
        self._owner = connection.scalar(text("SELECT CONNECTION_ID()"))
        self._lanes: list[tuple[Connection, dict[Table, Stage]]] = [(connection, {})]
        self._prepared = 0
        self._report = LoadReport(schema.model, origin.source, rejects=origin.rejects, dry_run=origin.dry_run)

    def prepare(self, *, features: pa.Table | None = None, labels: pa.Table | None = None) -> dict[Table, Prepared]:
        """Stage rows for `add`, with the columns entity_id, event_time, available_at and the columns of the schema.

        A second thread may prepare the next part while one is added, but no further part, because there are two lanes.
        Raises: DataRefused: MariaDB would change a value.
        """
        connection, stages = self._lane(self._prepared % 2)
        self._prepared += 1
        prepared = {}
        for table, rows in ((self._tables.features, features), (self._tables.labels, labels)):
            if rows is not None and rows.num_rows:
                remaining, left_out = leave_out(self._tombstones, self._schema.model, rows)
                if table not in stages:
                    stages[table] = Stage(connection, table)
                stages[table].load(remaining, self._folder)
                prepared[table] = Prepared(connection, stages[table], remaining.num_rows, left_out)
        return prepared

    def _lane(self, number: int) -> tuple[Connection, dict[Table, Stage]]:
        if number == len(self._lanes):
            second = self._connection.engine.connect().execution_options(isolation_level=ISOLATION)
            self._lanes.append((second, {}))
        return self._lanes[number]

    def close(self) -> None:
        """Close the second connection and discard its uncommitted rows. Their locks would block the batch's removal."""
        for connection, _ in self._lanes[1:]:
            connection.close()

    def add(self, prepared: Mapping[Table, Prepared]) -> None:
        """Append rows in one transaction.

        (entity_id, event_time, available_at) is unique in each table. A row with the same values as the store is left
        out. A row with other values is a correction. It is available from the load on, or at its own availability time.
        Raises: DataRefused: a row contradicts a row of this load, or a row with the same own availability time.
        """
        report = replace(self._report, rows=self._report.rows + max((p.count for p in prepared.values()), default=0))
        for table, rows in prepared.items():
            added, same, changed = self._append(rows)
            count_name = "features_added" if table is self._tables.features else "labels_added"
            report = _plus(report, unchanged=same, corrections=changed, forgotten=rows.left_out, **{count_name: added})
        for connection in {rows.connection for rows in prepared.values()}:
            self._check_lock(connection)
            connection.commit()
        self._report = replace(report, batch_id=self._report.batch_id)

    def _check_lock(self, connection: Connection) -> None:
        """Check that the first connection still holds the lock.

        Another load that got the lock waits until these rows are committed, and then removes them.
        Raises: StackError.
        """
        lock = {"name": load_lock(self._schema.model), "owner": self._owner}
        if connection.scalar(text("SELECT IS_USED_LOCK(:name) = :owner"), lock) != 1:
            connection.rollback()
            raise StackError(f"{self._schema.model}: the load lost its connection, and with it its turn: run it again")

    def _append(self, rows: Prepared) -> tuple[int, int, int]:
        own_times, batch_id = self._origin.available_at_given, self._report.batch_id
        same, changed = rows.stage.compare(own_times=own_times, batch_id=batch_id, source=self._origin.source)
        if same == rows.count or self._origin.dry_run:
            return rows.count - same, same, changed
        batch_id = batch_id or self._open(rows.connection)
        return rows.stage.insert(batch_id=batch_id, now=self._origin.now, own_times=own_times), same, changed

    def _open(self, connection: Connection) -> int:
        """Record the batch at its first new row."""
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

    def record(self, **values: object) -> None:
        """Record values that are known only at the end: `rejects`, `content_sha256`."""
        self._connection.execute(
            update(load_batch).where(load_batch.c.batch_id == self._report.batch_id).values(**values)
        )
        self._connection.commit()

    def commit(self) -> LoadReport:
        """Make the batch visible and update the online store. Do nothing if no row is new."""
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
