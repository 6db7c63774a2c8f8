"""A temporary table that rows enter before the store: bulk-loaded, compared with the store in SQL, then inserted."""

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
    """Rows on their way into `target`, a features or labels table. The table goes with its connection."""

    def __init__(self, connection: Connection, target: Table) -> None:
        self._connection, self._target = connection, target
        self._names = [column.name for column in target.columns if column.name != "batch_id"]
        self._staged = Table(
            f"staged_{target.name}",
            MetaData(),
            *(Column(name, target.c[name].type, nullable=name not in KEY) for name in self._names),
            Column("known_at", DATETIME(fsp=6)),  # available_at of the store's row that this one is compared with
            Column("same", SmallInteger),  # null where the store has no such row
            schema=target.schema,
            prefixes=["TEMPORARY"],
            mariadb_engine="Aria",  # nothing here outlives the connection, so nothing needs a redo log
            mariadb_charset="utf8mb4",
            mariadb_collate=target.dialect_options["mariadb"]["collate"],
        )
        connection.execute(CreateTable(self._staged))
        self._all_new = False
        self._path = connection.dialect.identifier_preparer.format_table(self._staged)

    def load(self, rows: pa.Table, folder: Path) -> None:
        """Replace what is staged by `rows`, which pass through a file of `folder`; they have the columns of the target.

        Raises: DataRefused where the server warns of anything: it would store something else than what it was given.
        """
        file = _written(rows, self._target, folder)
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

    def compare(self, *, given: bool, batch_id: int | None, source: str) -> tuple[int, int]:
        """Hold each staged row against the store; returns (rows that are there already, rows that change one).

        With `given` times of availability the row to compare with is the one known at that time, else the newest. What
        says the same at a later given time is not there already: a row between the two may still come.
        Raises: DataRefused where this load, or the same time of availability, has said something else before.
        """
        staged, known, older = self._staged, self._target, self._target.alias("older")
        # New data is the rule, and for that this alone costs half of what follows.
        meets = select(literal(1)).join_from(
            staged, known, and_(known.c.entity_id == staged.c.entity_id, known.c.event_time == staged.c.event_time)
        )
        self._all_new = self._connection.scalar(meets.prefix_with("STRAIGHT_JOIN").limit(1)) is None
        if self._all_new:
            return 0, 0
        newest = select(func.max(older.c.available_at)).where(
            older.c.entity_id == staged.c.entity_id, older.c.event_time == staged.c.event_time
        )
        if given:
            newest = newest.where(older.c.available_at <= staged.c.available_at)
        same = and_(*(known.c[name].is_not_distinct_from(staged.c[name]) for name in self._names if name not in KEY))
        self._connection.execute(
            update(staged)
            .values({staged.c.known_at: known.c.available_at, staged.c.same: same})
            .where(
                known.c.entity_id == staged.c.entity_id,
                known.c.event_time == staged.c.event_time,
                known.c.available_at == newest.scalar_subquery(),
            )
        )
        self._refuse_contradictions(given=given, batch_id=batch_id, source=source)
        there = case((staged.c.known_at == staged.c.available_at, staged.c.same), else_=0) if given else staged.c.same
        counts = select(func.coalesce(func.sum(there), 0), func.coalesce(func.sum(1 - staged.c.same), 0))
        unchanged, changed = self._connection.execute(counts).one()
        return int(unchanged), int(changed)

    def _refuse_contradictions(self, *, given: bool, batch_id: int | None, source: str) -> None:
        staged, known = self._staged, self._target
        query = (
            select(staged.c.entity_id, staged.c.event_time, staged.c.known_at)
            .join_from(
                staged,
                known,
                and_(
                    known.c.entity_id == staged.c.entity_id,
                    known.c.event_time == staged.c.event_time,
                    known.c.available_at == staged.c.known_at,
                ),
            )
            .where(staged.c.same == 0)
            .where(staged.c.known_at == staged.c.available_at if given else known.c.batch_id == batch_id)
            .limit(1)
        )
        if (found := self._connection.execute(query).one_or_none()) is not None:
            entity, event_time, known_at = found
            raise RowContradicts(source=source, entity=entity, event_time=event_time, known_at=known_at)

    def insert(self, *, batch_id: int, now: datetime, given: bool) -> int:
        """Move what is new into the store and return how many rows that were."""
        staged = self._staged
        # A correction is known from this load on, and always later than what it corrects.
        after = func.timestampadd(text("MICROSECOND"), 1, staged.c.known_at)
        corrected = case((staged.c.known_at.is_(None), staged.c.available_at), else_=func.greatest(now, after))
        values: dict[str, ColumnElement[object]] = {name: staged.c[name] for name in self._names}
        values["batch_id"] = literal(batch_id)
        if self._all_new:
            fresh = select(*values.values())
        elif given:
            told_otherwise = or_(
                staged.c.same.is_(None), staged.c.same == 0, staged.c.known_at != staged.c.available_at
            )
            fresh = select(*values.values()).where(told_otherwise)
        else:
            values["available_at"] = corrected
            fresh = select(*values.values()).where(func.coalesce(staged.c.same, 0) == 0)
        return self._connection.execute(insert(self._target).from_select(list(values), fresh)).rowcount


def _written(rows: pa.Table, target: Table, folder: Path) -> Path:
    """`rows` as LOAD DATA reads them, in the key's order: the store takes them fastest in that order."""
    names = [column.name for column in target.columns if column.name != "batch_id"]
    shape = pa.schema([(name, _arrow_type(target.c[name].type)) for name in names])
    ordered = rows.select(names).cast(shape).sort_by([(name, "ascending") for name in KEY]).combine_chunks()
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tsv", delete=False) as file:
        for batch in ordered.to_batches():
            file.write(as_tsv(batch))
    return Path(file.name)


def as_tsv(rows: pa.RecordBatch) -> memoryview:
    r"""`rows` as LOAD DATA reads them: tabs between values, `\N` for null; numbers in their shortest exact form."""
    *columns, last = [_as_text(rows.column(name)) for name in rows.schema.names]
    ended = pc.binary_join_element_wise(last, _text(""), _text("\n"))
    lines = pc.binary_join_element_wise(*columns, ended, _text("\t"))
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
