"""Making the next item of an iterator while the last one is being used."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor


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
