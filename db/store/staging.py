"""A temporary table for rows before the store. Rows are bulk-loaded, compared with the store in SQL, and inserted."""

import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    MetaData,
    SmallInteger,
    Table,
    and_,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeEngine

from db.store.store_tables import KEY
from utils.errors import DataRefused, RowContradicts

NULL_FIELD = r"\N"
ESCAPES = (("\\", r"\\"), ("\t", r"\t"), ("\n", r"\n"))  # the backslash first


class Stage:
    """Staged rows for `target`, a features or labels table. The temporary table ends with its connection."""

    def __init__(self, connection: Connection, target: Table) -> None:
        self._connection, self._target = connection, target
        self._names = [column.name for column in target.columns if column.name != "batch_id"]
        self._staged = Table(
            f"staged_{target.name}",
            MetaData(),
            *(Column(name, target.c[name].type, nullable=name not in KEY) for name in self._names),
            Column("known_at", DATETIME(fsp=6)),  # available_at of the store's row that is compared with this row
            Column("same", SmallInteger),  # null if the store has no row to compare with
            schema=target.schema,
            prefixes=["TEMPORARY"],
            mariadb_engine="Aria",  # the table ends with the connection, so it needs no redo log
            mariadb_charset="utf8mb4",
            mariadb_collate=target.dialect_options["mariadb"]["collate"],
        )
        connection.execute(CreateTable(self._staged))
        self._all_new = False
        self._path = connection.dialect.identifier_preparer.format_table(self._staged)

    def load(self, rows: pa.Table, folder: Path) -> None:
        """Replace the staged rows by `rows`, through a file in `folder`. They have the columns of the target.

        Raises: DataRefused: the server gave a warning, so it would change a value.
        """
        file = _write_tsv(rows, self._target, folder)
        self._connection.execute(text(f"TRUNCATE TABLE {self._path}"))
        columns = ", ".join(self._connection.dialect.identifier_preparer.quote(name) for name in self._names)
        statement = text(
            f"LOAD DATA LOCAL INFILE :path INTO TABLE {self._path} CHARACTER SET utf8mb4"
            f" FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' ({columns})"
        )
        self._connection.execute(statement, {"path": str(file)})
        file.unlink()
        if self._connection.scalar(text("SELECT @@warning_count")):
            first = self._connection.execute(text("SHOW WARNINGS")).fetchone()
            raise DataRefused(f"{self._target.name}: MariaDB would change a value: {first[-1] if first else 'unknown'}")

    def compare(self, *, own_times: bool, batch_id: int | None, source: str) -> tuple[int, int]:
        """Compare each staged row with the store. Return the counts (unchanged rows, rows that change a row).

        A row with its own availability time (`own_times`) is compared with the row known at that time, else with the
        newest row. The same values at a later own time count as new, because a row between the two may still come.
        Raises: DataRefused: this load, or a row with the same own availability time, has other values.
        """
        staged, stored, older = self._staged, self._target, self._target.alias("older")
        # Most loads bring only new rows. For them this query alone is enough, and costs half as much as the comparison.
        match = select(literal(1)).join_from(
            staged, stored, and_(stored.c.entity_id == staged.c.entity_id, stored.c.event_time == staged.c.event_time)
        )
        self._all_new = self._connection.scalar(match.prefix_with("STRAIGHT_JOIN").limit(1)) is None
        if self._all_new:
            return 0, 0
        newest = select(func.max(older.c.available_at)).where(
            older.c.entity_id == staged.c.entity_id, older.c.event_time == staged.c.event_time
        )
        if own_times:
            newest = newest.where(older.c.available_at <= staged.c.available_at)
        same = and_(*(stored.c[name].is_not_distinct_from(staged.c[name]) for name in self._names if name not in KEY))
        self._connection.execute(
            update(staged)
            .values({staged.c.known_at: stored.c.available_at, staged.c.same: same})
            .where(
                stored.c.entity_id == staged.c.entity_id,
                stored.c.event_time == staged.c.event_time,
                stored.c.available_at == newest.scalar_subquery(),
            )
        )
        self._refuse_contradictions(own_times=own_times, batch_id=batch_id, source=source)
        same_time = staged.c.known_at == staged.c.available_at
        is_stored = case((same_time, staged.c.same), else_=0) if own_times else staged.c.same
        counts = select(func.coalesce(func.sum(is_stored), 0), func.coalesce(func.sum(1 - staged.c.same), 0))
        unchanged, changed = self._connection.execute(counts).one()
        return int(unchanged), int(changed)

    def _refuse_contradictions(self, *, own_times: bool, batch_id: int | None, source: str) -> None:
        staged, stored = self._staged, self._target
        query = (
            select(staged.c.entity_id, staged.c.event_time, staged.c.known_at)
            .join_from(
                staged,
                stored,
                and_(
                    stored.c.entity_id == staged.c.entity_id,
                    stored.c.event_time == staged.c.event_time,
                    stored.c.available_at == staged.c.known_at,
                ),
            )
            .where(staged.c.same == 0)
            .where(staged.c.known_at == staged.c.available_at if own_times else stored.c.batch_id == batch_id)
            .limit(1)
        )
        if (row := self._connection.execute(query).one_or_none()) is not None:
            entity, event_time, known_at = row
            raise RowContradicts(source=source, entity=entity, event_time=event_time, known_at=known_at)

    def insert(self, *, batch_id: int, now: datetime, own_times: bool) -> int:
        """Insert the new rows into the store and return their number."""
        staged = self._staged
        # A correction is available from this load on, and always later than the corrected row.
        after = func.timestampadd(text("MICROSECOND"), 1, staged.c.known_at)
        corrected = case((staged.c.known_at.is_(None), staged.c.available_at), else_=func.greatest(now, after))
        values: dict[str, ColumnElement[object]] = {name: staged.c[name] for name in self._names}
        values["batch_id"] = literal(batch_id)
        if self._all_new:
            new_rows = select(*values.values())
        elif own_times:
            changed = or_(staged.c.same.is_(None), staged.c.same == 0, staged.c.known_at != staged.c.available_at)
            new_rows = select(*values.values()).where(changed)
        else:
            values["available_at"] = corrected
            new_rows = select(*values.values()).where(func.coalesce(staged.c.same, 0) == 0)
        return self._connection.execute(insert(self._target).from_select(list(values), new_rows)).rowcount


def _write_tsv(rows: pa.Table, target: Table, folder: Path) -> Path:
    """Write `rows` to a file for LOAD DATA, in the key's order, the fastest for the store."""
    names = [column.name for column in target.columns if column.name != "batch_id"]
    shape = pa.schema([(name, _arrow_type(target.c[name].type)) for name in names])
    ordered = rows.select(names).cast(shape).sort_by([(name, "ascending") for name in KEY]).combine_chunks()
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tsv", delete=False) as file:
        for batch in ordered.to_batches():
            file.write(as_tsv(batch))
    return Path(file.name)


def as_tsv(rows: pa.RecordBatch) -> memoryview:
    r"""Return `rows` for LOAD DATA: tabs between values, `\N` for null, numbers in their shortest exact form."""
    *columns, last = [_as_text(rows.column(name)) for name in rows.schema.names]
    line_ends = pc.binary_join_element_wise(last, _text(""), _text("\n"))
    lines = pc.binary_join_element_wise(*columns, line_ends, _text("\t"))
    _, offsets, content = lines.buffers()
    return memoryview(content)[: memoryview(offsets).cast("q")[len(lines)]]


def _arrow_type(stored: TypeEngine[Any]) -> pa.DataType:
    if isinstance(stored, Double):
        return pa.float64()
    return pa.timestamp("us") if isinstance(stored, DATETIME) else pa.string()


def _as_text(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        for raw, escaped in ESCAPES:
            values = pc.replace_substring(values, raw, escaped)
    return pc.fill_null(values.cast(pa.large_string()), _text(NULL_FIELD))


def _text(value: str) -> pa.Scalar:
    return pa.scalar(value, pa.large_string())
