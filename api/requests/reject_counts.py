"""Counts of refused requests, kept in memory and written with the heartbeat. A refusal costs no SQL statement."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping


class RejectCounts:
    """Counts by (field, reason), each pair once a request. The model file and pydantic's types bound the pairs.

    The event loop counts, and another thread writes the counts.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, refusals: Iterable[tuple[str, str]]) -> None:
        with self._lock:
            self._counts.update(set(refusals))

    def take(self) -> dict[tuple[str, str], int]:
        """Return all counts since the last call, and start again at zero."""
        with self._lock:
            counts, self._counts = dict(self._counts), Counter()
        return counts

    def give_back(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add counts that could not be written."""
        with self._lock:
            self._counts.update(counts)
