"""Iterators that compute the next items while the caller works on the current one."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


def ahead[Item](items: Iterator[Item]) -> Generator[Item]:
    """Yield the same items in order. A second thread computes the next item while the caller works on the current one.

    Use it for items that wait for a server, or for code that runs outside Python's lock. At most one item is computed
    ahead, so memory stays bounded. An error in `items` is raised in place of its item. Close the generator if you do
    not take all items.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        future = thread.submit(next, items, end)
        while (item := future.result()) is not end:
            future = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def map_ahead[Item, Value](make: Callable[[Item], Value], items: Iterator[Item], *, threads: int) -> Generator[Value]:
    """Yield `make(item)` for each item, in order. `threads` threads compute at most `threads` results ahead."""
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        futures: deque[Future[Value]] = deque()
        for item in items:
            futures.append(pool.submit(make, item))
            if len(futures) > threads:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
