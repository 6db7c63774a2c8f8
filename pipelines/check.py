"""Holding the rows of a file against the model file, column by column, before any of them enters the store."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from db.schema import CATEGORY_LENGTH, ENTITY_LENGTH, TEXT_LENGTH, TIMELESS
from pipelines.spec import Categorical, Feature, ModelSpec, Numeric
from utils.clock import as_utc
from utils.errors import MissingColumns

NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
TIME_OF_DAY = r"([01]?\d|2[0-3])(?:\.0)?(?::([0-5]\d))?(?::([0-5]\d(?:\.\d+)?))?"
STAMP = pa.timestamp("us")
SHOWN = 60  # characters of a refused value that a message shows

Reject = tuple[int, str, str, str]  # line, column, value, reason


@dataclass(frozen=True, slots=True)
class Columns:
    """Which of a file's columns the load takes, under the model file's names. No private one is among them."""

    taken: dict[str, str]  # name in the file: name in the model file
    features: bool
    label: bool

    @classmethod
    def of(cls, names: Sequence[str], *, spec: ModelSpec, source: str) -> "Columns":
        """The columns to take of a file that has `names`; label or features may be absent as a whole.

        Raises: MissingColumns where the entity, a time or some of the features are missing.
        """
        private = set(spec.features.private)
        renamed = {name: spec.source.map.get(name, name) for name in names}
        open_names = {name: new for name, new in renamed.items() if not private & {name, new}}
        source_times = (spec.source.event_time, spec.source.time_of_day, spec.source.available_at)
        times = [name for name in source_times if name]
        present = set(open_names.values())
        label = spec.label.column in present
        features = bool(present & set(spec.features.columns)) or not label
        wanted = [spec.entity, *times, *(spec.features.columns if features else ()), *([spec.label.column] * label)]
        if missing := [name for name in wanted if name not in present]:
            raise MissingColumns(source=source, missing=missing, available=names)
        return cls({name: new for name, new in open_names.items() if new in wanted}, features, label)


@dataclass(slots=True)
class Checked:
    """Rows in the store's types: entity_id, event_time, available_at, then features or label. `rejects`: one a row."""

    features: pa.Table | None = None
    labels: pa.Table | None = None
    rejects: list[Reject] = field(default_factory=list)


class _Chunk:
    """A chunk under check; remembers the first thing wrong with each row."""

    def __init__(self, rows: pa.Table, *, first_line: int) -> None:
        self.rows, self.first_line = rows, first_line
        self.wrong: dict[int, Reject] = {}

    def column(self, name: str) -> pa.Array:
        """The column as one array; text that is nothing but white space is null."""
        values = _plain(self.rows[name].combine_chunks())
        if pa.types.is_string(values.type):
            values = pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), None, values)
        return values

    def refuse(self, name: str, raw: pa.Array, mask: pa.Array, reason: str) -> None:
        for index in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
            value = "" if raw[index].as_py() is None else str(raw[index].as_py())[:SHOWN]
            self.wrong.setdefault(index, (self.first_line + index, name, value, reason))

    def numbers(self, name: str, *, low: float | None = None, high: float | None = None) -> pa.Array:
        raw = self.column(name)
        values = raw
        if pa.types.is_string(raw.type):
            trimmed = pc.utf8_trim_whitespace(raw)
            bad = pc.invert(pc.match_substring_regex(trimmed, NUMBER))
            self.refuse(name, raw, bad, "is not a number")
            values = pc.if_else(bad, None, trimmed)
        numbers = values.cast(pa.float64(), safe=False)
        if not pa.types.is_string(raw.type):
            numbers = pc.if_else(pc.is_nan(numbers), None, numbers)  # how frames say missing
        self.refuse(name, raw, pc.invert(pc.is_finite(numbers)), "is not a finite number")
        if low is not None:
            self.refuse(name, raw, pc.less(numbers, low), f"is below the minimum {low:g}")
        if high is not None:
            self.refuse(name, raw, pc.greater(numbers, high), f"is above the maximum {high:g}")
        return numbers

    def names(self, name: str, *, longest: int, allowed: Sequence[str] = ()) -> pa.Array:
        values = self.column(name).cast(pa.string())
        self.refuse(name, values, pc.greater(pc.utf8_length(values), longest), f"is longer than {longest} characters")
        if allowed:
            outside = pc.and_(pc.is_valid(values), pc.invert(pc.is_in(values, pa.array(allowed, pa.string()))))
            self.refuse(name, values, outside, f"is not one of {', '.join(allowed)}")
        return values

    def times(self, name: str) -> pa.Array:
        """Times in UTC; those that carry an offset are converted, all others are UTC already."""
        raw = self.column(name)
        self.refuse(name, raw, pc.is_null(raw), "is missing")
        if not pa.types.is_string(raw.type):
            if pa.types.is_temporal(raw.type):
                return raw.cast(STAMP, safe=False)
            raw = raw.cast(pa.string())
        try:
            return pc.utf8_trim_whitespace(raw).cast(STAMP)
        except pa.ArrowInvalid:  # offsets, or something that is no time: each different text is looked at once
            coded = raw.dictionary_encode()
            parsed = pa.array([_moment(text) for text in coded.dictionary.to_pylist()], STAMP)
            times = parsed.take(coded.indices)
            self.refuse(name, raw, pc.is_null(times), "is not a time like 2026-11-21 or 2026-11-21T08:30:00+01:00")
            return times

    def at_time_of_day(self, date: str, days: pa.Array, name: str) -> pa.Array:
        """`days`, the times of the column `date`, moved to the time of day in the column `name`."""
        self.refuse(date, days, pc.not_equal(days, pc.floor_temporal(days, unit="day")), "has a time of day already")
        raw = self.column(name)
        self.refuse(name, raw, pc.is_null(raw), "is missing")
        coded = raw.cast(pa.string()).dictionary_encode()
        parsed = pa.array([_time_of_day(text) for text in coded.dictionary.to_pylist()], pa.duration("us"))
        since_midnight = parsed.take(coded.indices)
        self.refuse(name, raw, pc.is_null(since_midnight), "is neither an hour from 0 to 23 nor a time like 17:30")
        return pc.add(days, since_midnight)


def check(rows: pa.Table, *, spec: ModelSpec, columns: Columns, first_line: int) -> Checked:
    """`rows`, whose columns are `columns.taken`'s, in the store's types; the first of them is `first_line` of its file.

    A row that appears twice is taken once. Where a row is refused, the tables are None.
    """
    chunk = _Chunk(rows.rename_columns([columns.taken[name] for name in rows.column_names]), first_line=first_line)
    entity = chunk.names(spec.entity, longest=ENTITY_LENGTH)
    chunk.refuse(spec.entity, entity, pc.is_null(entity), "is missing")
    source = spec.source
    event_time = pa.repeat(pa.scalar(TIMELESS, STAMP), len(rows))
    if source.event_time:
        event_time = chunk.times(source.event_time)
    if source.event_time and source.time_of_day:
        event_time = chunk.at_time_of_day(source.event_time, event_time, source.time_of_day)
    keys = {
        "entity_id": entity,
        "event_time": event_time,
        "available_at": chunk.times(source.available_at) if source.available_at else event_time,
    }
    values = {
        name: _feature(chunk, name, feature) for name, feature in spec.features.columns.items() if columns.features
    }
    label = _label(chunk, spec) if columns.label else None
    table = pa.table({**keys, **values, **({} if label is None else {spec.label.column: label})})
    if not chunk.wrong:
        table = _without_repeats(chunk, table, keys=list(keys), spec=spec)
    if chunk.wrong:
        return Checked(rejects=[chunk.wrong[index] for index in sorted(chunk.wrong)])
    return Checked(
        features=table.select([*keys, *values]) if columns.features else None,
        labels=_labelled(table.select([*keys, spec.label.column])) if columns.label else None,
    )


def _feature(chunk: _Chunk, name: str, feature: Feature) -> pa.Array:
    if isinstance(feature, Numeric):
        return chunk.numbers(name, low=feature.min, high=feature.max)
    if isinstance(feature, Categorical):
        return chunk.names(name, longest=CATEGORY_LENGTH, allowed=feature.values)
    return chunk.names(name, longest=TEXT_LENGTH)


def _label(chunk: _Chunk, spec: ModelSpec) -> pa.Array:
    if spec.task == "regression":
        return chunk.numbers(spec.label.column)
    return chunk.names(spec.label.column, longest=CATEGORY_LENGTH, allowed=spec.label.classes)


def _labelled(table: pa.Table) -> pa.Table:
    """Rows whose label, the last column, is known."""
    return table.filter(pc.is_valid(table.columns[-1]))


def _without_repeats(chunk: _Chunk, table: pa.Table, *, keys: list[str], spec: ModelSpec) -> pa.Table:
    """`table` with each key once; a repeated key with other values is refused."""
    if table.group_by(keys).aggregate([]).num_rows == table.num_rows:
        return table
    frame = table.to_pandas()
    repeats = frame.duplicated(keys)
    contradicts = frame.duplicated(keys, keep=False) & ~frame.duplicated(keep=False)
    for index in contradicts[contradicts].index:
        reject = (
            chunk.first_line + index,
            spec.entity,
            frame.at[index, "entity_id"],
            "appears again with other values",
        )
        chunk.wrong.setdefault(index, reject)
    return table.filter(pa.array(~repeats))


def _plain(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type) or pa.types.is_null(values.type):
        values = values.cast(pa.string())
    return values


def _time_of_day(text: str) -> timedelta | None:
    if not (match := re.fullmatch(TIME_OF_DAY, text.strip())):
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def _moment(text: str | None) -> datetime | None:
    try:
        return as_utc(datetime.fromisoformat(text.strip())) if text else None
    except (ValueError, OverflowError):
        return None
