"""Times as files write them, in UTC."""

from datetime import datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from utils.clock import as_utc

STAMP = pa.timestamp("us")
FIRST, LAST = datetime(1000, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)  # what MariaDB's DATETIME holds


class Times(NamedTuple):
    """Times as they were written: `local` where no offset stood beside them, else `utc`. Null in both is no time."""

    local: pa.Array
    utc: pa.Array


class Placed(NamedTuple):
    """Local times in UTC, and which of them the clocks of the zone show twice or never; those are null."""

    utc: pa.Array
    twice: pa.Array
    never: pa.Array


def as_written(values: pa.Array) -> Times:
    """The times in an array of text or of a temporal type."""
    if pa.types.is_temporal(values.type):
        times = values.cast(STAMP, safe=False)
        absent = pa.nulls(len(values), STAMP)
        return Times(absent, times) if getattr(values.type, "tz", None) else Times(times, absent)
    text = values.cast(pa.string())
    try:
        return Times(pc.utf8_trim_whitespace(text).cast(STAMP), pa.nulls(len(text), STAMP))
    except pa.ArrowInvalid:  # offsets, or something that is no time: each different text is looked at once
        coded = text.dictionary_encode()
        moments = [_moment(each) for each in coded.dictionary.to_pylist()]
        local = [each if each and not each.tzinfo else None for each in moments]
        utc = [_in_utc(each) if each and each.tzinfo else None for each in moments]
        return Times(*(pa.array(each, STAMP).take(coded.indices) for each in (local, utc)))


def placed(local: pa.Array, *, zone: str | None) -> Placed:
    """`local` times of `zone`, an IANA name, in UTC; without a zone they are UTC already."""
    none = pa.repeat(False, len(local))
    if zone is None:
        return Placed(local, none, none)
    try:
        return Placed(pc.assume_timezone(local, zone).cast(STAMP), none, none)
    except pa.ArrowInvalid:  # some of them the clocks show twice or never
        first, second, beyond = (
            pc.assume_timezone(local, zone, ambiguous=ambiguous, nonexistent=nonexistent).cast(STAMP)
            for ambiguous, nonexistent in (("earliest", "earliest"), ("latest", "earliest"), ("earliest", "latest"))
        )
        twice, never = pc.not_equal(first, second), pc.not_equal(first, beyond)
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
