"""Check the rows of a file against the model file, column by column, before any row enters the store."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from db.store.schema import CATEGORY_LENGTH, ENTITY_LENGTH, TEXT_LENGTH, TIMELESS
from pipelines.loading.columns import Columns
from pipelines.loading.files import Ints
from pipelines.loading.rejects import Reject
from pipelines.loading.times import FIRST, LAST, STAMP, as_written, placed
from pipelines.spec import Categorical, Feature, ModelSpec, Numeric
from utils.errors import DataRefused

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
# Commas that can only separate thousands. The comma in 1,234 may also be a decimal comma.
GROUPED = r"^[+-]?[1-9]\d{0,2}((,\d{3})+\.\d+|(,\d{3}){2,})$"
MAYBE_GROUPED = r"^[+-]?[1-9]\d{0,2},\d{3}$"
TIME_OF_DAY = r"([01]?\d|2[0-3])(?:\.0)?(?::([0-5]\d))?(?::([0-5]\d(?:\.\d+)?))?"
SHOWN = 60  # characters of a rejected value in a message


@dataclass(frozen=True, slots=True)
class Checked:
    """The valid rows in the store's types: entity_id, event_time, available_at, then features or label.

    features: None if the file has no features.
    labels: None if the file has no labels.
    rejects: one for each wrong row, with the first error in it.
    """

    features: pa.Table | None
    labels: pa.Table | None
    rejects: list[Reject]


class _Chunk:
    """The rows of a chunk, and the first error in each wrong row."""

    def __init__(self, rows: pa.Table, *, lines: Sequence[int] | Ints, columns: Columns) -> None:
        self.rows, self._lines, self._source = rows, lines, columns.source
        self.errors: dict[int, Reject] = {}

    def column(self, name: str) -> pa.Array:
        """The column as one array. Text of white space only becomes null."""
        values = self.rows[name].combine_chunks()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if _is_text(values.type) or pa.types.is_null(values.type):
            values = values.cast(pa.string())
            blank = pc.or_(pc.equal(pc.binary_length(values), 0), pc.utf8_is_space(values))
            if pc.any(blank).as_py():
                values = pc.if_else(blank, None, values)
        elif not _is_scalar(values.type):
            raise DataRefused(f"{self._source}: column {name} holds {values.type}: expected numbers, text or times")
        return values

    def reject_where(self, name: str, raw: pa.Array, mask: pa.Array, reason: str) -> None:
        for index in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
            if index not in self.errors:
                value = raw[index].as_py()
                self.reject(index, name, "" if value is None else str(value), reason)

    def reject(self, index: int, name: str, value: str, reason: str) -> None:
        self.errors.setdefault(index, (int(self._lines[index]), name, value[:SHOWN], reason))

    def numbers(self, name: str, *, low: float | None = None, high: float | None = None) -> pa.Array:
        raw = self.column(name)
        numbers = self._parse_numbers(name, raw) if _is_text(raw.type) else _as_double(raw)
        lowest, highest = pc.min_max(numbers).as_py().values()
        if lowest is None:
            return numbers
        if not pc.all(pc.is_finite(numbers)).as_py():
            self.reject_where(name, raw, pc.invert(pc.is_finite(numbers)), "is not a finite number")
        if low is not None and lowest < low:
            self.reject_where(name, raw, pc.less(numbers, low), f"is below the minimum {low:g}")
        if high is not None and highest > high:
            self.reject_where(name, raw, pc.greater(numbers, high), f"is above the maximum {high:g}")
        return numbers

    def _parse_numbers(self, name: str, raw: pa.Array) -> pa.Array:
        try:
            numbers = raw.cast(pa.float64())
            if pc.all(pc.is_finite(numbers)).as_py() is not False:
                return numbers
        except pa.ArrowInvalid:
            pass
        text = pc.utf8_trim_whitespace(raw)  # some values are not plain numbers
        text = pc.if_else(pc.match_substring_regex(text, GROUPED), pc.replace_substring(text, ",", ""), text)
        ambiguous = pc.match_substring_regex(text, MAYBE_GROUPED)
        self.reject_where(
            name, raw, ambiguous, "may be thousands or a fraction: write it without a comma, or with a point"
        )
        wrong = pc.invert(pc.match_substring_regex(text, NUMBER))
        self.reject_where(name, raw, wrong, "is not a number")
        return pc.if_else(wrong, None, text).cast(pa.float64())

    def names(self, name: str, *, longest: int, allowed: Sequence[str] = ()) -> pa.Array:
        values = self.column(name).cast(pa.string())
        if (pc.max(pc.binary_length(values)).as_py() or 0) > longest:
            too_long = pc.greater(pc.utf8_length(values), longest)
            self.reject_where(name, values, too_long, f"is longer than {longest} characters")
        if allowed:
            allowed_mask = pc.is_in(values, pa.array([*allowed, None], pa.string()))
            if not pc.all(allowed_mask).as_py():
                self.reject_where(name, values, pc.invert(allowed_mask), f"is not one of {', '.join(allowed)}")
        return values

    def times(self, name: str, *, zone: str | None, time_of_day: str | None = None) -> pa.Array:
        """The column's times in UTC. A time without an offset is in `zone`, or in UTC if `zone` is None.

        With `time_of_day` the column holds dates, and the column `time_of_day` holds the hour or time on that date.
        """
        raw = self.column(name)
        self.reject_where(name, raw, pc.is_null(raw), "is missing")
        local, utc = as_written(raw)
        no_time = pc.and_(pc.is_null(local), pc.is_null(utc))
        self.reject_where(name, raw, no_time, "is not a time like 2026-11-21 or 2026-11-21T08:30:00+01:00")
        if time_of_day:
            dates = pc.coalesce(local, utc)
            has_time_of_day = pc.not_equal(dates, pc.floor_temporal(dates, unit="day"))
            self.reject_where(name, raw, has_time_of_day, "has a time of day already")
            local, utc = pc.add(dates, self._since_midnight(time_of_day)), pa.nulls(len(raw), STAMP)
        placement = placed(local, zone=zone)
        for mask, problem in ((placement.twice, "occurs twice"), (placement.never, "does not exist")):
            self.reject_where(
                name, raw, mask, f"{problem} in {zone}, where clocks are moved: give its offset, like +01:00"
            )
        times = pc.coalesce(placement.utc, utc)
        outside = pc.or_(pc.less(times, FIRST), pc.greater(times, LAST))
        self.reject_where(name, raw, outside, "is outside the years 1000 to 9999")
        return times

    def _since_midnight(self, name: str) -> pa.Array:
        raw = self.column(name)
        self.reject_where(name, raw, pc.is_null(raw), "is missing")
        coded = raw.cast(pa.string()).dictionary_encode()
        parsed = pa.array([_time_of_day(text) for text in coded.dictionary.to_pylist()], pa.duration("us"))
        since_midnight = parsed.take(coded.indices)
        self.reject_where(
            name, raw, pc.is_null(since_midnight), "is neither an hour from 0 to 23 nor a time like 17:30"
        )
        return since_midnight


def check(rows: pa.Table, *, spec: ModelSpec, columns: Columns, lines: Sequence[int] | Ints) -> Checked:
    """Check `rows`, which have the columns of `columns.taken`, and convert them to the store's types.

    `lines`: the line of each row in its file. A repeated row is loaded once.
    Raises: DataRefused if the type of a column holds neither numbers, text nor times.
    """
    renamed = rows.rename_columns([columns.taken[name] for name in rows.column_names])
    chunk = _Chunk(renamed, lines=lines, columns=columns)
    try:
        keys, values, label = _keys(chunk, spec), {}, None
        if columns.features:
            values = {name: _feature(chunk, name, feature) for name, feature in spec.features.columns.items()}
        if columns.label:
            label = _label(chunk, spec)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # a Parquet type that does not fit the column
        raise DataRefused(f"{columns.source}: a column has an unfit type: {str(error).splitlines()[0][:200]}") from None
    table = pa.table({**keys, **values, **({} if label is None else {spec.label.column: label})})
    table = _valid_rows(chunk, table, keys=list(keys), spec=spec)
    labels = None
    if columns.label:
        labels = table.select([*keys, spec.label.column])
        labels = labels.filter(pc.is_valid(labels[spec.label.column]))
    return Checked(
        features=table.select([*keys, *values]) if columns.features else None,
        labels=labels,
        rejects=[chunk.errors[index] for index in sorted(chunk.errors)],
    )


def _keys(chunk: _Chunk, spec: ModelSpec) -> dict[str, pa.Array]:
    source = spec.source
    entity = chunk.names(spec.entity, longest=ENTITY_LENGTH)
    chunk.reject_where(spec.entity, entity, pc.is_null(entity), "is missing")
    event_time = pa.repeat(pa.scalar(TIMELESS, STAMP), len(entity))
    if source.event_time:
        event_time = chunk.times(source.event_time, zone=source.time_zone, time_of_day=source.time_of_day)
    available_at = event_time
    if source.available_column:
        available_at = chunk.times(source.available_column, zone=source.time_zone)
    elif source.lag is not None:
        available_at = pc.add(event_time, pa.scalar(source.lag, pa.duration("us")))
    return {"entity_id": entity, "event_time": event_time, "available_at": available_at}


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


def _valid_rows(chunk: _Chunk, table: pa.Table, *, keys: list[str], spec: ModelSpec) -> pa.Table:
    """The rows of `table` without an error, each key once. A repeated key with other values is rejected."""
    valid = np.ones(table.num_rows, bool)
    valid[list(chunk.errors)] = False
    positions = np.flatnonzero(valid)
    rows = table.filter(pa.array(valid)) if chunk.errors else table
    if rows.group_by(keys).aggregate([]).num_rows == rows.num_rows:
        return rows
    frame = rows.to_pandas()
    distinct = frame.drop_duplicates()
    disputed_keys = distinct[distinct.duplicated(keys)].set_index(keys).index
    contradictory = frame.set_index(keys).index.isin(disputed_keys)
    for index in np.flatnonzero(contradictory):
        chunk.reject(positions[index], spec.entity, frame.at[index, "entity_id"], "appears again with other values")
    return rows.filter(pa.array(~frame.duplicated(keys) & ~contradictory))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind))


def _as_double(values: pa.Array) -> pa.Array:
    numbers = values.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(numbers), None, numbers)  # data frames write NaN for missing


def _time_of_day(text: str) -> timedelta | None:
    if not (match := re.fullmatch(TIME_OF_DAY, text.strip())):
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)
