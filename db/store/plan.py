"""Change store tables after a change of the model file: plan, then apply. Data is lost only if the caller names it.

A snapshot is read again by the spec it was made with. So a column may be added, and a category may become text, which
stores the same values. But a column whose values would be read as another kind, or could not be read, is refused, or
dropped by name.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable, DropTable, SetTableComment

from db.partitions import months
from db.session import session
from db.store.schema import RESERVED_COLUMNS, Kind, StoreSchema
from db.store.schema import Column as SchemaColumn
from db.store.store_tables import MONTHS_AHEAD, MONTHS_BACK, entity_note, load_lock, store_tables
from utils.errors import NotFound, SpecInvalid, StackError
from utils.settings import STORE_DB, Settings

Action = Literal["migrate", "make", "remake", "add", "widen", "note", "drop", "keep", "refuse"]
DONE: Mapping[Action, str] = {
    "migrate": "migrated",
    "make": "made",
    "remake": "made anew",
    "add": "added",
    "widen": "widened",
    "note": "noted",
    "drop": "dropped",
}
STORED_AS: Mapping[Kind, str] = {"number": "double", "category": "varchar", "text": "text"}  # in information_schema
KINDS = {stored: kind for kind, stored in STORED_AS.items()}
WAIT_SECONDS = 60  # seconds to wait for the end of a load, and for readers of a changing table
LOCK_TIMEOUT = 1205
KEEP_NAME = "keep that name (source.map gives a file's column it)"
OTHER_NAME = "or give the model another name"


@dataclass(frozen=True, slots=True)
class Change:
    """A line of a plan.

    column: empty for whole tables. For a refused change, the key in the model file.
    what: the rest of the sentence that `action` begins.
    """

    model: str
    action: Action
    table: str
    column: str
    what: str

    @property
    def planned(self) -> str:
        if self.action == "refuse":
            return f"refuse {self.model}.yaml: {self.column}: {self.what}"
        return f"{self.action.replace('remake', 'make anew')} {self.what}"

    @property
    def done(self) -> str:
        return f"{DONE[self.action]} {self.what}"


@dataclass(frozen=True, slots=True)
class Stored:
    """An existing table of the store. `columns` maps names to data types. `note` names the entity of the rows."""

    columns: Mapping[str, str]
    partitioned: bool
    note: str | None


def plan_model(connection: Connection, schema: StoreSchema, *, drop: Collection[str] = ()) -> list[Change]:
    """Return the changes that `schema` requires. Changes with action `refuse` are not possible. It only reads.

    Raises: NotFound: a column of `drop` does not exist. SpecInvalid: the model file still uses the column.
    """
    tables = store_tables(schema)
    changes: list[Change] = []
    for table in (tables.features, tables.labels, tables.latest):
        if (stored := _stored(connection, table)) is None:
            changes.append(Change(schema.model, "make", table.name, "", f"table {table.fullname}"))
        else:
            changes += _table_changes(schema, table, stored, drop=drop)
    changes = list(dict.fromkeys(changes))
    _check_named(schema, changes, drop)
    if any(change.action == "refuse" for change in changes) and not _holds_rows(connection, schema):
        whole = f"the tables of {schema.model}: they hold no rows"
        return [Change(schema.model, "remake", schema.features_table, "", whole)]
    return [_with_losses(connection, schema, change) if change.action == "drop" else change for change in changes]


def _table_changes(schema: StoreSchema, table: Table, stored: Stored, *, drop: Collection[str]) -> Iterator[Change]:
    """Yield the changes of one existing table."""
    if table.name == schema.labels_table:
        yield from _identity_changes(schema, table, stored)
        yield from _label_changes(schema, table, stored)
        return
    if table.name == schema.features_table:  # the rows of `latest` are copies of its rows
        yield from _identity_changes(schema, table, stored)
    for column in schema.features:
        yield from _feature_changes(schema, table, column, stored.columns.get(column.name), drop=drop)
    spec_names = RESERVED_COLUMNS | {column.name for column in schema.features}
    for name in (name for name in stored.columns if name not in spec_names):
        column_text = f"column {name} of {table.fullname}"
        if name in drop:
            yield Change(schema.model, "drop", table.name, name, column_text)
        elif table.name == schema.features_table:
            reason = f"the model file no longer names it (`--drop {schema.model}.{name}` removes its values)"
            yield Change(schema.model, "keep", table.name, name, f"{column_text}: {reason}")


def _feature_changes(
    schema: StoreSchema, table: Table, column: SchemaColumn, present: str | None, *, drop: Collection[str]
) -> Iterator[Change]:
    """Yield the changes of one feature's column, whose stored data type is `present`."""

    def change(action: Action, what: str) -> Change:
        return Change(schema.model, action, table.name, column.name, what)

    column_text = f"column {column.name} of {table.fullname}"
    if present is None:
        yield change("add", f"column {column.name} to {table.fullname}")
    elif column.kind == "text" and present == STORED_AS["category"]:
        yield change("widen", f"{column_text} from category to text")
    elif not _fits(column, present) and column.name in drop:
        yield change("drop", column_text)
        yield change("add", f"column {column.name} to {table.fullname}")
    elif not _fits(column, present):
        reason = (  # the same text for both tables with the column
            f"{_kinds_text(column, present)}, and snapshots of it must stay readable: give it another name,"
            f" or drop what is stored by `evergreen migrate --drop {schema.model}.{column.name}`"
        )
        yield Change(schema.model, "refuse", schema.features_table, f"features.columns.{column.name}", reason)


def _label_changes(schema: StoreSchema, table: Table, stored: Stored) -> Iterator[Change]:
    present = stored.columns.get(schema.label.name)
    if present is None:
        names = ", ".join(name for name in stored.columns if name not in RESERVED_COLUMNS)
        reason = f"the store holds the label as {names}: {KEEP_NAME}, {OTHER_NAME}"
        yield Change(schema.model, "refuse", table.name, "label.column", reason)
    elif not _fits(schema.label, present):
        kinds = _kinds_text(schema.label, present)
        reason = f"the label {schema.label.name}: {kinds}: undo the change of task, {OTHER_NAME}"
        yield Change(schema.model, "refuse", table.name, "task", reason)


def _identity_changes(schema: StoreSchema, table: Table, stored: Stored) -> Iterator[Change]:
    """Yield the changes of the rows' meaning: their entity, and whether they have a time."""
    note = entity_note(schema.entity)
    if note and not stored.note:
        yield Change(schema.model, "note", table.name, "", f"{note} at {table.fullname}")
    elif note and stored.note != note:
        entity = str(stored.note).removeprefix("entity: ")
        reason = f"the store's rows are those of {entity}: {KEEP_NAME}, {OTHER_NAME}"
        yield Change(schema.model, "refuse", table.name, "entity", reason)
    if stored.partitioned != schema.timed:
        old, new = ("a time", "no time") if stored.partitioned else ("no time", "one")
        reason = f"the store's rows have {old}, and with {new} they would mean something else: undo that, {OTHER_NAME}"
        yield Change(schema.model, "refuse", table.name, "source.event_time", reason)


def _fits(column: SchemaColumn, present: str) -> bool:
    """Whether a stored column can hold the values unchanged. A text column can hold categories too."""
    return STORED_AS[column.kind] == present or (column.kind == "category" and present == STORED_AS["text"])


def _kinds_text(column: SchemaColumn, present: str) -> str:
    return f"the store already holds it as {KINDS.get(present, present)}, not as {column.kind}"


def _check_named(schema: StoreSchema, changes: Sequence[Change], drop: Collection[str]) -> None:
    dropped = {change.column for change in changes if change.action == "drop"}
    for name in sorted(set(drop) - dropped):
        if name in RESERVED_COLUMNS or name in {schema.label.name, *(column.name for column in schema.features)}:
            problem = (f"--drop {schema.model}.{name}", "the model file uses it as the store holds it: nothing to drop")
            raise SpecInvalid(file=f"{schema.model}.yaml", problems=[problem])
        droppable = ", ".join(change.column for change in changes if change.action == "keep") or "none"
        hint = f"columns that may be dropped: {droppable}"
        raise NotFound(what=f"column {name}", where=schema.features_table, hint=hint)


def _with_losses(connection: Connection, schema: StoreSchema, change: Change) -> Change:
    """Return the change with a count of the lost values and snapshots."""
    if change.table != schema.features_table:
        return change
    column = store_column(connection, change)
    rows = connection.scalar(text(f"SELECT COUNT({column}) FROM {STORE_DB}.{change.table}"))  # noqa: S608  quoted
    query = text(
        "SELECT COUNT(DISTINCT snapshot_id) FROM training_run WHERE model = :model AND JSON_EXISTS(spec, :path)"
    )
    parameters = {"model": change.model, "path": f'$.features.columns."{change.column}"'}
    snapshots = connection.scalar(query, parameters) or 0
    losses = f": {rows:,} rows hold a value of it" if rows else ": no row holds a value of it"
    if snapshots:
        losses += (
            f"; {snapshots:,} {'snapshot' if snapshots == 1 else 'snapshots'} used it and can no longer be"
            " read again from the store, only from their files"
        )
    return Change(change.model, change.action, change.table, change.column, change.what + losses)


def store_column(connection: Connection, change: Change) -> str:
    """Return the quoted name of the column."""
    return connection.dialect.identifier_preparer.quote(change.column)


def _stored(connection: Connection, table: Table) -> Stored | None:
    parameters = {"database": STORE_DB, "name": table.name}
    facts = connection.execute(
        text(
            "SELECT create_options AS options, table_comment AS note FROM information_schema.tables"
            " WHERE table_schema = :database AND table_name = :name"
        ),
        parameters,
    ).one_or_none()
    if facts is None:
        return None
    columns = connection.execute(
        text(
            "SELECT column_name AS name, data_type AS type FROM information_schema.columns"
            " WHERE table_schema = :database AND table_name = :name ORDER BY ordinal_position"
        ),
        parameters,
    )
    return Stored({row.name: row.type for row in columns}, "partitioned" in facts.options, facts.note or None)


def _holds_rows(connection: Connection, schema: StoreSchema) -> bool:
    tables = store_tables(schema)
    present = [table for table in (tables.features, tables.labels) if _stored(connection, table)]
    return any(connection.scalar(text(f"SELECT 1 FROM {table.fullname} LIMIT 1")) for table in present)  # noqa: S608


def apply_model(settings: Settings, schema: StoreSchema, changes: Sequence[Change], *, today: date) -> list[str]:
    """Apply the changes of a plan and return them as text. Column changes of a table are one statement, all or none.

    `today` places the partitions of new tables (`MONTHS_BACK` months back, `MONTHS_AHEAD` months ahead).
    Raises: StackError: a load of the model or a reader of a changing table blocks it for a minute.
    """
    tables = store_tables(schema, first_days=months(today, back=MONTHS_BACK, ahead=MONTHS_AHEAD))
    to_apply = [change for change in changes if change.action != "keep"]
    remake = any(change.action == "remake" for change in to_apply)
    if not to_apply:
        return []
    try:
        with session(settings, "admin", STORE_DB) as connection:
            connection.execute(text("SET SESSION lock_wait_timeout = :seconds"), {"seconds": WAIT_SECONDS})
            if remake or any(change.action == "drop" for change in to_apply):
                _lock_loads(connection, schema)
            if remake and _holds_rows(connection, schema):  # rows were loaded after the plan
                raise StackError(f"{schema.model}: rows were loaded meanwhile: run `evergreen migrate` again")
            for table in (tables.features, tables.labels, tables.latest):
                if remake:
                    connection.execute(DropTable(table, if_exists=True))
                _apply_table(connection, table, [c for c in to_apply if c.table == table.name], remake=remake)
    except DBAPIError as error:
        if error.orig and error.orig.args[0] == LOCK_TIMEOUT:
            raise StackError(
                f"{schema.model}: a table is in use for more than {WAIT_SECONDS} s: try again later"
            ) from error
        raise
    return [change.done for change in to_apply]


def _lock_loads(connection: Connection, schema: StoreSchema) -> None:
    lock = {"name": load_lock(schema.model), "seconds": WAIT_SECONDS}
    if connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), lock) != 1:
        raise StackError(f"{schema.model}: a load has been running for {WAIT_SECONDS} s: try again after it")


def _apply_table(connection: Connection, table: Table, changes: Sequence[Change], *, remake: bool) -> None:
    if remake or any(change.action == "make" for change in changes):
        connection.execute(CreateTable(table))
        for index in table.indexes:
            index.create(connection)
        return
    if any(change.action == "note" for change in changes):
        connection.execute(SetTableComment(table))
    clauses = [_clause(connection, table, change) for change in changes if change.action != "note"]
    if clauses:
        name = connection.dialect.identifier_preparer.format_table(table)
        connection.execute(text(f"ALTER TABLE {name} {', '.join(clauses)}"))


def _clause(connection: Connection, table: Table, change: Change) -> str:
    column = store_column(connection, change)
    if change.action == "drop":
        return f"DROP COLUMN {column}"
    verb = "MODIFY" if change.action == "widen" else "ADD"
    return f"{verb} COLUMN {column} {table.c[change.column].type.compile(connection.dialect)} NULL"
