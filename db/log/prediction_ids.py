"""The ids of predictions: UUIDv7, whose time is the row's `created_at` and says which partition holds it."""

import hashlib
import secrets
from datetime import datetime, timedelta
from uuid import UUID

import uuid6

EPOCH = datetime(1970, 1, 1)

VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}  # of RFC 9562, by a random digit


def new_id(now: datetime) -> UUID:
    """A UUIDv7 of the millisecond of `now` (UTC).

    `uuid6.uuid7` gives each next id a millisecond of its own, so above 1,000 a second its ids run ahead of the clock,
    and with them `created_at` and the partition.
    """
    milliseconds = (now - EPOCH) // timedelta(milliseconds=1)
    return uuid6.UUID(int=milliseconds << 80 | secrets.randbits(76), version=7)


def new_ids(now: datetime, count: int) -> list[str]:
    """As many as `count` of what `new_id` makes, as text: a tenth of the time for each."""
    time, random = f"{(now - EPOCH) // timedelta(milliseconds=1):012x}", secrets.token_hex(10 * count)
    made = []
    for start in range(0, len(random), 20):
        tail = random[start : start + 20]
        made.append(f"{time[:8]}-{time[8:]}-7{tail[:3]}-{VARIANT[tail[3]]}{tail[4:7]}-{tail[7:19]}")
    return made


def repeatable_id(first: datetime, content: str) -> UUID:
    """A UUIDv7 of the millisecond of `first` (UTC) whose other bits come from `content`: the same for the same."""
    milliseconds = (first - EPOCH) // timedelta(milliseconds=1)
    bits = int.from_bytes(hashlib.sha256(content.encode()).digest()) >> (256 - 76)
    return uuid6.UUID(int=milliseconds << 80 | bits, version=7)


def shadow_id(champion_id: UUID, version: int) -> UUID:
    """The id of what the challenger `version` predicts for a logged prediction: of the same millisecond, always the
    same, so that the two rows find each other without a column for it."""
    return repeatable_id(created_at(champion_id), f"{champion_id} {version}")


def to_millisecond(now: datetime) -> datetime:
    """The time that `created_at` finds in an id made at `now`."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def created_at(prediction_id: UUID) -> datetime:
    """The time that is in a UUIDv7, UTC, to the millisecond."""
    return EPOCH + timedelta(milliseconds=prediction_id.int >> 80)
