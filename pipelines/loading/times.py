"""Convert times from files to UTC."""

from datetime import datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from utils.clock import as_utc

STAMP = pa.timestamp("us")
FIRST, LAST = datetime(1000, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)  # the range of MariaDB's DATETIME


class Times(NamedTuple):
    """Times from a file: `local` if written without an offset, else `utc`. Both are null if a value is not a time."""

    local: pa.Array
    utc: pa.Array


class Placed(NamedTuple):
    """Local times in UTC.

    utc: null for a time in `twice` or `never`.
    twice: a mask of the times that occur twice in the zone.
    never: a mask of the times that do not exist in the zone.
    """

    utc: pa.Array
    twice: pa.Array
    never: pa.Array


def as_written(values: pa.Array) -> Times:
    """Read the times in an array of text or of a temporal type."""
    if pa.types.is_temporal(values.type):
        times = values.cast(STAMP, safe=False)
        absent = pa.nulls(len(values), STAMP)
        return Times(absent, times) if getattr(values.type, "tz", None) else Times(times, absent)
    text = values.cast(pa.string())
    try:
        return Times(pc.utf8_trim_whitespace(text).cast(STAMP), pa.nulls(len(text), STAMP))
    except pa.ArrowInvalid:  # some have offsets or are not times: parse each distinct text once
        coded = text.dictionary_encode()
        moments = [_moment(value) for value in coded.dictionary.to_pylist()]
        local = [moment if moment and not moment.tzinfo else None for moment in moments]
        utc = [_in_utc(moment) if moment and moment.tzinfo else None for moment in moments]
        return Times(*(pa.array(times, STAMP).take(coded.indices) for times in (local, utc)))


def placed(local: pa.Array, *, zone: str | None) -> Placed:
    """Convert `local` times of `zone`, an IANA name, to UTC. Without a zone they are UTC already."""
    no_row = pa.repeat(False, len(local))
    if zone is None:
        return Placed(local, no_row, no_row)
    try:
        return Placed(pc.assume_timezone(local, zone).cast(STAMP), no_row, no_row)
    except pa.ArrowInvalid:  # some times occur twice or never
        first, second, shifted = (
            pc.assume_timezone(local, zone, ambiguous=ambiguous, nonexistent=nonexistent).cast(STAMP)
            for ambiguous, nonexistent in (("earliest", "earliest"), ("latest", "earliest"), ("earliest", "latest"))
        )
        twice, never = pc.not_equal(first, second), pc.not_equal(first, shifted)
        return Placed(pc.if_else(pc.or_(twice, never), None, first), twice, never)


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip()) if text else None
    except ValueError:
        return None


def _in_utc(moment: datetime) -> datetime | None:
    try:
        return as_utc(moment)
    except OverflowError:
        return None
