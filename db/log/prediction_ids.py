"""The ids of predictions. Each is a UUIDv7 whose time is the row's `created_at` and determines its partition."""

import hashlib
import secrets
from datetime import datetime, timedelta
from uuid import UUID

import uuid6

EPOCH = datetime(1970, 1, 1)

# The variant digit of RFC 9562, by a random digit.
VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def new_id(now: datetime) -> UUID:
    """Return a UUIDv7 of the millisecond of `now` (UTC).

    `uuid6.uuid7` gives each id a millisecond of its own. Above 1,000 a second its ids run ahead of the clock, as do
    `created_at` and the partition.
    """
    milliseconds = (now - EPOCH) // timedelta(milliseconds=1)
    return uuid6.UUID(int=milliseconds << 80 | secrets.randbits(76), version=7)


def new_ids(now: datetime, count: int) -> list[str]:
    """Return `count` ids like those of `new_id`, as text. Each takes a tenth of the time."""
    time, random = f"{(now - EPOCH) // timedelta(milliseconds=1):012x}", secrets.token_hex(10 * count)
    ids = []
    for start in range(0, len(random), 20):
        tail = random[start : start + 20]
        ids.append(f"{time[:8]}-{time[8:]}-7{tail[:3]}-{VARIANT[tail[3]]}{tail[4:7]}-{tail[7:19]}")
    return ids


def repeatable_id(first: datetime, content: str) -> UUID:
    """Return a UUIDv7 of the millisecond of `first` (UTC) whose other bits are a hash of `content`."""
    milliseconds = (first - EPOCH) // timedelta(milliseconds=1)
    bits = int.from_bytes(hashlib.sha256(content.encode()).digest()) >> (256 - 76)
    return uuid6.UUID(int=milliseconds << 80 | bits, version=7)


def shadow_id(champion_id: UUID, version: int) -> UUID:
    """Return the id of the prediction that the challenger `version` makes for a logged prediction.

    The id has the same millisecond and is always the same, so the two rows can be joined without an extra column.
    """
    return repeatable_id(created_at(champion_id), f"{champion_id} {version}")


def to_millisecond(now: datetime) -> datetime:
    """Return `now` cut to the millisecond, like the time in an id made at `now`."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def created_at(prediction_id: UUID) -> datetime:
    """Return the time in a UUIDv7, UTC, to the millisecond."""
    return EPOCH + timedelta(milliseconds=prediction_id.int >> 80)
