"""How many connections each worker of a service holds, in memory that the service's processes have in common.

The parent process offers it to its workers, each of which writes in its own place and reads those of the others. A
place that is 0 belongs to none that takes connections. That of a worker that was killed is made so by the one that
comes instead of it; until then new connections may be left to the dead, a millisecond each.
"""

import mmap
import os
import tempfile
from collections.abc import MutableMapping

VARIABLE = "EVERGREEN_SHARES_FD"
PLACES = 128  # workers, at most; BentoML counts them from 1


def offer(environment: MutableMapping[str, str]) -> None:
    """Make the memory, and name it in the `environment` of the workers to be."""
    with tempfile.TemporaryFile() as file:
        file.truncate(PLACES * 8)
        descriptor = os.dup(file.fileno())
    os.set_inheritable(descriptor, True)
    environment[VARIABLE] = str(descriptor)


class ConnectionCounts:
    """One worker's view. Without memory from a parent, or a place in it, it has no others."""

    def __init__(self, environment: MutableMapping[str, str], worker: int | None) -> None:
        given = environment.get(VARIABLE)
        if given is None or worker is None or worker >= PLACES:
            given, worker = "-1", 0  # memory of its own
        self._counts = memoryview(mmap.mmap(int(given), PLACES * 8)).cast("q")
        self._mine = worker
        self._counts[self._mine] = 0

    def put(self, connections: int) -> None:
        """Say that this worker takes connections and holds so many."""
        self._counts[self._mine] = 1 + connections

    def leave(self) -> None:
        """Say that it takes no more."""
        self._counts[self._mine] = 0

    def is_others_turn(self) -> bool:
        """Whether another holds less than half as many, so that the next connection should be its.

        Exact turns would cost clients that open a connection a request.
        """
        mine = self._counts[self._mine]
        return any(count and mine > 2 * count for count in self._counts.tolist())
