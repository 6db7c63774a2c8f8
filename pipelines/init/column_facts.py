"""Describe the columns of an unknown file, and guess their roles in a model file."""

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
MANY = 50  # distinct values; with more, a column is no short list, and its values are too rare to judge
CLOSED = 6  # the length of the longest closed list of values
OFTEN = 10  # least number of rows of each value in a closed list
MOSTLY = 0.9

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Facts:
    """A column of the sample.

    file_name, name: the names of the column in the file and in the model file.
    rows, blank: the numbers of all rows and of blank rows.
    text: the values as text. Blanks are null.
    numbers: the values as numbers, blanks as NaN. None if the column is not numeric.
    times: the values as times, blanks as null. None if the column has no times.
    counts: value as text to number of rows, the most frequent first.
    unreadable: the type of the values if they can't be read, else empty.
    """

    file_name: str
    name: str
    rows: int
    blank: int
    text: pa.Array
    numbers: Floats | None
    times: pa.Array | None
    counts: Mapping[str, int]
    unreadable: str = ""

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def whole(self) -> bool:
        """Whether all numbers of the column are whole."""
        return self.numbers is not None and bool((np.mod(self.numbers[~np.isnan(self.numbers)], 1) == 0).all())

    @property
    def words(self) -> set[str]:
        return set(self.name.split("_"))

    @property
    def summary(self) -> str:
        blank = f", {self.blank:,} of {self.rows:,} blank" if self.blank else ""
        return f"{self.distinct:,} distinct values in {self.rows:,} rows{blank}"


@dataclass(frozen=True, slots=True)
class Guess:
    """The guessed role of a column.

    role: what the column is in the model file.
    why: the evidence for the guess.
    keys: the keys of the feature, also if it is left out.
    """

    role: Literal["feature", "left out", "private"]
    why: str
    keys: Mapping[str, Any] = field(default_factory=dict)


def facts_of(file_name: str, name: str, values: pa.ChunkedArray) -> Facts:
    """Collect the facts of one column. `name` is its name in the model file."""
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
    """Guess the role of a column that is neither entity, time nor label."""
    if column.unreadable:
        return Guess("left out", f"holds {column.unreadable}, which no feature can be")
    if not column.counts:
        return Guess("left out", "blank in every row", {"type": "categorical"})
    if column.distinct == 1 and not column.blank and column.rows > 1:
        return Guess("left out", "the same value in every row", _type_of(column)[0])
    if why := _private(column):
        return Guess("private", why)
    if column.times is not None:
        why = f"times, {span_text(column)}: give the days since then as a number, to learn from it"
        return Guess("left out", why)
    keys, why = _type_of(column)
    return Guess("feature" if keys.get("type") else "left out", why, keys) if why != IDENTIFIER else _identifier(column)


IDENTIFIER = "an identifier"


def _identifier(column: Facts) -> Guess:
    if column.numbers is not None:
        why = f"{column.summary}: a row's number or an identifier, nothing to learn from"
        return Guess("left out", why, {"type": "numeric"})
    return Guess("private", f"{column.summary}: an identifier, nothing to learn from")


def _type_of(column: Facts) -> tuple[dict[str, Any], str]:
    """The keys of the feature, and the evidence. An identifier has no keys, and `IDENTIFIER` as evidence."""
    if column.numbers is not None and not _is_code(column):
        return ({}, IDENTIFIER) if _is_row_number(column) else _numeric(column)
    longest_text = int(pc.max(pc.utf8_length(column.text)).as_py() or 0)
    if longest_text > TEXT_LENGTH:
        return {}, f"up to {longest_text:,} characters: longer than the {TEXT_LENGTH:,} that a text may have"
    mean_words = float(pc.mean(pc.count_substring(pc.utf8_trim_whitespace(column.text), " ")).as_py() or 0) + 1
    filled_rows = column.rows - column.blank
    if longest_text > CATEGORY_LENGTH or (
        column.distinct > MANY and mean_words >= (2.5 if column.distinct > filled_rows / 2 else 4)
    ):
        return {"type": "text"}, f"{column.summary}, {mean_words:.0f} words on average"
    if column.distinct > MANY and column.distinct > filled_rows / 2:
        return {}, IDENTIFIER
    why = column.summary + (", some numbers begin with 0: a code" if column.numbers is not None else "")
    highest_count = next(iter(column.counts.values()))
    if column.distinct <= CLOSED and min(column.counts.values()) >= OFTEN:
        why += f", the rarest in {min(column.counts.values()):,}"
        return {"type": "categorical", "values": sorted(column.counts)}, why
    if _share(column.text, OTHER_DATES) > MOSTLY:
        why += "; dates in another form than 2026-11-21 are only words"
    elif highest_count < filled_rows and (not_numbers := _nearly_numbers(column)):
        why += f"; numbers but for {not_numbers}: leave those blank in the file to make it numeric"
    return {"type": "categorical"}, why


def _numeric(column: Facts) -> tuple[dict[str, Any], str]:
    lowest, highest = value_range(column)
    why = (
        f"{column.distinct:,} different {'whole numbers' if column.whole else 'numbers'} from {lowest:g} to {highest:g}"
    )
    blank = f", {column.blank:,} of {column.rows:,} blank" if column.blank else ""
    if column.whole and (lowest, highest) == (0, 1):
        return {"type": "numeric", "min": 0, "max": 1}, f"only 0 and 1{blank}"
    keys: dict[str, Any] = {"type": "numeric", "min": 0} if lowest >= 0 else {"type": "numeric"}
    return keys, f"{why}{', never negative' if lowest >= 0 else ''}{blank}"


def value_range(column: Facts) -> tuple[float, float]:
    """The lowest and the highest number of a numeric column."""
    assert column.numbers is not None  # noqa: S101  callers check this first
    return float(np.nanmin(column.numbers)), float(np.nanmax(column.numbers))


def span_text(column: Facts) -> str:
    """The first and last time of a column, as text."""
    ends = pc.min_max(column.times)
    return f"{ends['min'].as_py():%Y-%m-%d %H:%M} to {ends['max'].as_py():%Y-%m-%d %H:%M}"


def is_time_of_day(column: Facts) -> bool:
    """Whether the name suggests a time of day, and each row has an hour from 0 to 23 or a time like 17:30."""
    name_fits = bool(column.words & {"hr", "hour", "time"})
    return name_fits and not column.blank and all(re.fullmatch(TIME_OF_DAY, value.strip()) for value in column.counts)


def like_an_id(column: Facts) -> bool:
    """Whether the name of the column suggests an identifier."""
    return bool(column.words & ID_WORDS)


def model_names(names: Sequence[str]) -> dict[str, str]:
    """Map each column of a file to its name in the model file: unique, of small letters, digits and _."""
    new_names = {name: name for name in names if re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name)}
    for name in names:
        if name in new_names:
            continue
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain)
        plain = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_") or "column"
        plain = (plain if plain[0].isalpha() else f"n_{plain}")[:40]
        used, candidate, number = set(new_names.values()), plain, 2
        while candidate in used:
            candidate, number = f"{plain}_{number}", number + 1
        new_names[name] = candidate
    return {name: new_names[name] for name in names}


def _private(column: Facts) -> str:
    """The evidence that a column identifies a person, or an empty text."""
    for kind, shape in PRIVATE_SHAPES.items():
        if _share(column.text, shape) > MOSTLY:
            return f"{column.summary}: {kind}"
    many_values = column.distinct > MANY or column.distinct > (column.rows - column.blank) / 5 > 1
    if column.words <= PRIVATE_WORDS | {"first", "last", "full", "number", "no"}:  # not a phone_service
        many_values = many_values or (column.numbers is None and column.distinct > CLOSED)
    if many_values and (words := column.words & PRIVATE_WORDS):
        return f"{column.summary}, and it is called {min(words)}"
    return ""


def _is_code(column: Facts) -> bool:
    return _share(column.text, LEADING_ZERO) > 0


def _is_row_number(column: Facts) -> bool:
    if not column.whole or column.blank or column.distinct != column.rows or column.rows <= MANY:
        return False
    lowest, highest = value_range(column)
    return like_an_id(column) or highest - lowest + 1 == column.rows


def _nearly_numbers(column: Facts) -> str:
    exceptions = [value for value in column.counts if not re.fullmatch(NUMBER[1:-1], value.strip())]
    rows = sum(column.counts[value] for value in exceptions)
    is_few = len(exceptions) <= 3 and all(len(value) <= 10 for value in exceptions)
    return ", ".join(exceptions) if is_few and rows < (1 - MOSTLY) * (column.rows - column.blank) else ""


def _share(text: pa.Array, shape: str) -> float:
    return float(pc.mean(pc.match_substring_regex(text, shape).cast(pa.float64())).as_py() or 0.0)


def _counts(text: pa.Array) -> dict[str, int]:
    counts = pc.value_counts(text.drop_null()).sort(order="descending", by="counts")
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


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
    encoded = text.dictionary_encode()
    return pa.array([parsed[value] for value in encoded.dictionary.to_pylist()], pa.timestamp("us")).take(
        encoded.indices
    )


def _floats(values: pa.Array) -> Floats:
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
