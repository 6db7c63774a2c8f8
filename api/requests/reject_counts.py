"""Refused requests, counted in memory and written with the heartbeat: no refusal costs a statement."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping


class RejectCounts:
    """Counts by (field, reason), each once a request; the names are bounded by the model file and pydantic's types.

    Used from the event loop, and from the thread that writes them.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, found: Iterable[tuple[str, str]]) -> None:
        with self._lock:
            self._counts.update(set(found))

    def take(self) -> dict[tuple[str, str], int]:
        """All counts since the last time; they are the caller's now."""
        with self._lock:
            taken, self._counts = dict(self._counts), Counter()
        return taken

    def give_back(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Take back what could not be written."""
        with self._lock:
            self._counts.update(counts)
