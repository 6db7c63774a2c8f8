"""What a column of an unknown file looks like, and what it could be in a model file."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from db.store.schema import CATEGORY_LENGTH, TEXT_LENGTH
from pipelines.loading.checking import NUMBER, TIME_OF_DAY
from utils.clock import as_utc

PRIVATE_WORDS = frozenset(
    {"name", "firstname", "lastname", "fullname", "surname", "email", "mail", "phone", "mobile", "telephone", "tel"}
    | {"fax", "ssn", "passport", "iban", "address", "street", "dob", "birth", "birthday", "birthdate", "ip", "password"}
)
ID_WORDS = frozenset({"id", "uuid", "guid", "key", "no", "nr", "number", "num", "code"})
PRIVATE_SHAPES = {
    "e-mail addresses": r"^[^@\s]+@[^@\s]+\.[A-Za-z]{2,}$",
    "social security numbers": r"^\d{3}-\d{2}-\d{4}$",
}
OTHER_DATES = r"^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}"
LEADING_ZERO = r"^0\d"
MANY = 50  # distinct values; more than these are neither a short list nor seen often enough to say much
CLOSED = 6  # the longest list of values that is closed
OFTEN = 10  # rows that each value of a closed list has
MOSTLY = 0.9

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Facts:
    """A column of the sample. `text`, `numbers` and `times` are its values, blanks null, as far as they can be read so.

    `counts`: value to rows, the most frequent first, values as text.
    """

    file_name: str
    name: str  # in the model file
    rows: int
    blank: int
    text: pa.Array
    numbers: Floats | None
    times: pa.Array | None
    counts: Mapping[str, int]
    readable: str = ""  # the type of values that can't be read

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def whole(self) -> bool:
        """Whether all its numbers are whole."""
        return self.numbers is not None and bool((np.mod(self.numbers[~np.isnan(self.numbers)], 1) == 0).all())

    @property
    def words(self) -> set[str]:
        return set(self.name.split("_"))

    @property
    def said(self) -> str:
        blank = f", {self.blank:,} of {self.rows:,} blank" if self.blank else ""
        return f"{self.distinct:,} distinct values in {self.rows:,} rows{blank}"


@dataclass(frozen=True, slots=True)
class Guess:
    """What a column is guessed to be, and from what. `keys`: those of the feature, also of one that is left out."""

    role: Literal["feature", "left out", "private"]
    why: str
    keys: Mapping[str, Any] = field(default_factory=dict)


def facts_of(file_name: str, name: str, values: pa.ChunkedArray) -> Facts:
    """The facts of one column; `name` is its name in the model file."""
    column, rows = values.combine_chunks(), len(values)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    numbers = times = None
    readable = pa.types.is_primitive(column.type) or pa.types.is_decimal(column.type)
    readable = readable and not (pa.types.is_duration(column.type) or pa.types.is_interval(column.type))
    if not readable and not (_is_text(column.type) or pa.types.is_null(column.type)):
        return Facts(file_name, name, rows, 0, pa.nulls(rows, pa.string()), None, None, {}, str(column.type))
    if pa.types.is_temporal(column.type):
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            times = column.cast(pa.timestamp("us"), safe=False)
    elif readable and not pa.types.is_boolean(column.type):
        column = column.cast(pa.float64(), safe=False) if pa.types.is_decimal(column.type) else column
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        numbers = _floats(column)
    text = column.cast(pa.string())
    text = pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text)
    counts = _counts(text)
    if _is_text(column.type) and counts:
        numbers = _numbers_in(text)
        times = None if numbers is not None else _times_in(counts, text)
    return Facts(file_name, name, rows, text.null_count, text, numbers, times, counts)


def guess(column: Facts) -> Guess:
    """What a column that is neither entity, time nor label could be."""
    if column.readable:
        return Guess("left out", f"holds {column.readable}, which no feature can be")
    if not column.counts:
        return Guess("left out", "blank in every row", {"type": "categorical"})
    if column.distinct == 1 and not column.blank and column.rows > 1:
        return Guess("left out", "the same value in every row", _type_of(column)[0])
    if why := _private(column):
        return Guess("private", why)
    if column.times is not None:
        why = f"times, {span_said(column)}: give the days since then as a number, to learn from it"
        return Guess("left out", why)
    keys, why = _type_of(column)
    return Guess("feature" if keys.get("type") else "left out", why, keys) if why != IDENTIFIER else _identifier(column)


IDENTIFIER = "an identifier"


def _identifier(column: Facts) -> Guess:
    if column.numbers is not None:
        why = f"{column.said}: a row's number or an identifier, nothing to learn from"
        return Guess("left out", why, {"type": "numeric"})
    return Guess("private", f"{column.said}: an identifier, nothing to learn from")


def _type_of(column: Facts) -> tuple[dict[str, Any], str]:
    """The keys of the feature, and why; `IDENTIFIER` where it is none."""
    if column.numbers is not None and not _is_code(column):
        return ({}, IDENTIFIER) if _is_row_number(column) else _numeric(column)
    longest = int(pc.max(pc.utf8_length(column.text)).as_py() or 0)
    if longest > TEXT_LENGTH:
        return {}, f"up to {longest:,} characters: longer than the {TEXT_LENGTH:,} that a text may have"
    words = float(pc.mean(pc.count_substring(pc.utf8_trim_whitespace(column.text), " ")).as_py() or 0) + 1
    filled = column.rows - column.blank
    if longest > CATEGORY_LENGTH or (column.distinct > MANY and words >= (2.5 if column.distinct > filled / 2 else 4)):
        return {"type": "text"}, f"{column.said}, {words:.0f} words on average"
    if column.distinct > MANY and column.distinct > filled / 2:
        return {}, IDENTIFIER
    why = column.said + (", some numbers begin with 0: a code" if column.numbers is not None else "")
    most = next(iter(column.counts.values()))
    if column.distinct <= CLOSED and min(column.counts.values()) >= OFTEN:
        why += f", the rarest in {min(column.counts.values()):,}"
        return {"type": "categorical", "values": sorted(column.counts)}, why
    if _share(column.text, OTHER_DATES) > MOSTLY:
        why += "; dates in another form than 2026-11-21 are only words"
    elif most < filled and (not_numbers := _nearly_numbers(column)):
        why += f"; numbers but for {not_numbers}: leave those blank in the file to make it numeric"
    return {"type": "categorical"}, why


def _numeric(column: Facts) -> tuple[dict[str, Any], str]:
    least, most = value_range(column)
    why = f"{column.distinct:,} different {'whole numbers' if column.whole else 'numbers'} from {least:g} to {most:g}"
    blank = f", {column.blank:,} of {column.rows:,} blank" if column.blank else ""
    if column.whole and (least, most) == (0, 1):
        return {"type": "numeric", "min": 0, "max": 1}, f"only 0 and 1{blank}"
    keys: dict[str, Any] = {"type": "numeric", "min": 0} if least >= 0 else {"type": "numeric"}
    return keys, f"{why}{', never negative' if least >= 0 else ''}{blank}"


def value_range(column: Facts) -> tuple[float, float]:
    """The least and the greatest number of a numeric column."""
    assert column.numbers is not None  # noqa: S101  callers look first
    return float(np.nanmin(column.numbers)), float(np.nanmax(column.numbers))


def span_said(column: Facts) -> str:
    """From when to when the times of a column are."""
    ends = pc.min_max(column.times)
    return f"{ends['min'].as_py():%Y-%m-%d %H:%M} to {ends['max'].as_py():%Y-%m-%d %H:%M}"


def is_time_of_day(column: Facts) -> bool:
    """Whether each row has an hour from 0 to 23 or a time like 17:30, under a name that says so."""
    named = bool(column.words & {"hr", "hour", "time"})
    return named and not column.blank and all(re.fullmatch(TIME_OF_DAY, value.strip()) for value in column.counts)


def like_an_id(column: Facts) -> bool:
    """Whether its name says that it names things."""
    return bool(column.words & ID_WORDS)


def model_names(names: Sequence[str]) -> dict[str, str]:
    """For each column of a file its name in the model file: small letters, digits and _; each of them once."""
    named = {name: name for name in names if re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name)}
    for name in names:
        if name in named:
            continue
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain)
        plain = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_") or "column"
        plain = (plain if plain[0].isalpha() else f"n_{plain}")[:40]
        taken, new, number = set(named.values()), plain, 2
        while new in taken:
            new, number = f"{plain}_{number}", number + 1
        named[name] = new
    return {name: named[name] for name in names}


def _private(column: Facts) -> str:
    """Why a column is likely to tell who somebody is; empty where it isn't."""
    for what, shape in PRIVATE_SHAPES.items():
        if _share(column.text, shape) > MOSTLY:
            return f"{column.said}: {what}"
    many = column.distinct > MANY or column.distinct > (column.rows - column.blank) / 5 > 1
    if column.words <= PRIVATE_WORDS | {"first", "last", "full", "number", "no"}:  # not a phone_service
        many = many or (column.numbers is None and column.distinct > CLOSED)
    if many and (words := column.words & PRIVATE_WORDS):
        return f"{column.said}, and it is called {min(words)}"
    return ""


def _is_code(column: Facts) -> bool:
    return _share(column.text, LEADING_ZERO) > 0


def _is_row_number(column: Facts) -> bool:
    if not column.whole or column.blank or column.distinct != column.rows or column.rows <= MANY:
        return False
    least, most = value_range(column)
    return like_an_id(column) or most - least + 1 == column.rows


def _nearly_numbers(column: Facts) -> str:
    others = [value for value in column.counts if not re.fullmatch(NUMBER[1:-1], value.strip())]
    rows = sum(column.counts[value] for value in others)
    few = len(others) <= 3 and all(len(value) <= 10 for value in others)
    return ", ".join(others) if few and rows < (1 - MOSTLY) * (column.rows - column.blank) else ""


def _share(text: pa.Array, shape: str) -> float:
    return float(pc.mean(pc.match_substring_regex(text, shape).cast(pa.float64())).as_py() or 0.0)


def _counts(text: pa.Array) -> dict[str, int]:
    counted = pc.value_counts(text.drop_null()).sort(order="descending", by="counts")
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def _numbers_in(text: pa.Array) -> Floats | None:
    trimmed = pc.utf8_trim_whitespace(text)
    if not pc.all(pc.match_substring_regex(trimmed, NUMBER)).as_py():
        return None
    numbers = _floats(trimmed.cast(pa.float64()))
    return None if np.isinf(numbers).any() else numbers


def _times_in(counts: Mapping[str, int], text: pa.Array) -> pa.Array | None:
    parsed: dict[str, datetime] = {}
    for value in counts:
        try:
            parsed[value] = as_utc(datetime.fromisoformat(value.strip()))
        except (ValueError, OverflowError):
            return None
    coded = text.dictionary_encode()
    return pa.array([parsed[value] for value in coded.dictionary.to_pylist()], pa.timestamp("us")).take(coded.indices)


def _floats(values: pa.Array) -> Floats:
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
