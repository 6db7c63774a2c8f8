"""The number of connections that each worker of a service holds, in memory shared by the service's processes.

The parent process makes the memory before it starts its workers. Each worker writes its own place and reads all places.
A place of 0 means: this worker takes no connections. A killed worker leaves its last count behind. The worker that
replaces it resets the place. Until then the other workers may delay new connections, by a millisecond each.
"""

import mmap
import os
import tempfile
from collections.abc import MutableMapping

VARIABLE = "EVERGREEN_SHARES_FD"
PLACES = 128  # workers, at most; BentoML counts them from 1


def offer(environment: MutableMapping[str, str]) -> None:
    """Make the shared memory and put its descriptor into `environment`, which the workers inherit."""
    with tempfile.TemporaryFile() as file:
        file.truncate(PLACES * 8)
        descriptor = os.dup(file.fileno())
    os.set_inheritable(descriptor, True)
    environment[VARIABLE] = str(descriptor)


class ConnectionCounts:
    """One worker's view of the shared memory. Without shared memory or a place in it, the worker sees only itself."""

    def __init__(self, environment: MutableMapping[str, str], worker: int | None) -> None:
        descriptor = environment.get(VARIABLE)
        if descriptor is None or worker is None or worker >= PLACES:
            descriptor, worker = "-1", 0  # private memory
        self._counts = memoryview(mmap.mmap(int(descriptor), PLACES * 8)).cast("q")
        self._place = worker
        self._counts[self._place] = 0

    def put(self, connections: int) -> None:
        """Publish that this worker takes connections, and how many it holds."""
        self._counts[self._place] = 1 + connections

    def leave(self) -> None:
        """Publish that this worker takes no more connections."""
        self._counts[self._place] = 0

    def is_others_turn(self) -> bool:
        """Whether another worker holds less than half as many connections and should take the next one.

        Exact turns would slow down clients that open a connection for every request.
        """
        own_count = self._counts[self._place]
        return any(count and own_count > 2 * count for count in self._counts.tolist())
