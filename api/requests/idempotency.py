"""Idempotency keys: a client or a proxy without an answer sends its request again with the same key.

The prediction ids of a request are derived from its header `Idempotency-Key: SECONDS-NAME`. SECONDS is the Unix time of
the first attempt, with up to six decimals, at most 10 minutes ago and 1 minute ahead. NAME is 1 to 100 printable ASCII
characters without spaces that no other request has. A repeated request gets the same ids from every replica, and the
log keeps one row for each id. Content and version are part of the ids, so a different answer never takes the place of a
logged one.
"""

import re
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta

from db.log.prediction_ids import EPOCH

HEADER = b"idempotency-key"
FORM = re.compile(r"(\d{1,11})(?:\.(\d{1,6}))?-([!-~]{1,100})")
OLDEST, NEWEST = timedelta(minutes=10), timedelta(minutes=1)  # how far a key's time may be in the past, in the future
PROBLEM = (
    "the header Idempotency-Key must be SECONDS-NAME: the Unix time of the first attempt, at most "
    f"{OLDEST.seconds // 60} minutes ago, and up to 100 characters that no other request has"
)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The mark of a request that makes its repetitions recognisable.

    first: when the request was first sent, UTC.
    name: the rest of the key.
    """

    first: datetime
    name: str


KEY: ContextVar[IdempotencyKey | None] = ContextVar("key", default=None)  # of the current request


def parse_key(value: bytes, *, now: datetime) -> IdempotencyKey:
    """The key in the header's `value`. `now` is UTC.

    Raises: ValueError if the form is wrong or the time is not near `now`.
    """
    match = FORM.fullmatch(value.decode("ascii", "replace"))
    if not match:
        raise ValueError(PROBLEM)
    first = EPOCH + timedelta(seconds=int(match[1]), microseconds=int((match[2] or "0").ljust(6, "0")))
    if not now - OLDEST <= first <= now + NEWEST:
        raise ValueError(PROBLEM)
    return IdempotencyKey(first, match[3])
