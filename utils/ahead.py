"""Making the next items while the last one is being used."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


def ahead[Item](items: Iterator[Item]) -> Generator[Item]:
    """The same items in the same order, each made in a second thread while its predecessor is in use.

    For items that wait for a server or for code outside Python's lock. One item is made ahead at most, so memory
    stays bounded. An error in `items` is raised where its item would have come. Close it where not all are taken.
    """
    nothing = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = thread.submit(next, items, nothing)
            yield item  # type: ignore[misc]


def map_ahead[Item, Made](make: Callable[[Item], Made], items: Iterator[Item], *, threads: int) -> Generator[Made]:
    """`make(item)` for each item, in their order, by `threads` threads at a time; as many are made ahead at most."""
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        coming: deque[Future[Made]] = deque()
        for item in items:
            coming.append(pool.submit(make, item))
            if len(coming) > threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
