"""Requests that are sent again: a client or a proxy that got no answer repeats one with the key that it had.

The header `Idempotency-Key: SECONDS-NAME` (Unix time at which the request was first sent, with milliseconds; any name
that no other request has) makes the ids of its predictions. The same request again, to whichever replica, then has the
same ids, and the log keeps one row for each. Ids are also made of content and version, so that no answer can hide
behind another's row.
"""

import re
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta

from db.log.prediction_ids import EPOCH

HEADER = b"idempotency-key"
FORM = re.compile(r"(\d{1,11})(?:\.(\d{1,6}))?-([!-~]{1,100})")
OLDEST, NEWEST = timedelta(minutes=10), timedelta(minutes=1)  # how far its time may lie behind our clock, and before it
PROBLEM = (
    "the header Idempotency-Key must be SECONDS-NAME: the Unix time of the first attempt, at most "
    f"{OLDEST.seconds // 60} minutes ago, and up to 100 characters that no other request has"
)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What marks a request as the same when it is sent again. `first`: when it was first sent, UTC."""

    first: datetime
    name: str


KEY: ContextVar[IdempotencyKey | None] = ContextVar("key", default=None)  # of the request that is being handled


def parse_key(value: bytes, *, now: datetime) -> IdempotencyKey:
    """Raises: ValueError where it is not of the form, or its time is not near `now` (UTC)."""
    found = FORM.fullmatch(value.decode("ascii", "replace"))
    if not found:
        raise ValueError(PROBLEM)
    first = EPOCH + timedelta(seconds=int(found[1]), microseconds=int((found[2] or "0").ljust(6, "0")))
    if not now - OLDEST <= first <= now + NEWEST:
        raise ValueError(PROBLEM)
    return IdempotencyKey(first, found[3])
