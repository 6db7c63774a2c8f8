"""The spool: answered predictions that MariaDB has not taken yet, on the service's own disk.

HOME/spool/MODEL/
├── INSTANCE.db     SQLite, one a worker: what has been answered and is still to be logged
└── INSTANCE.lock   held as long as the worker lives: whoever can lock it has found a dead worker's spool
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.errors import NotNow

MOST_BYTES = 2_000_000_000  # of one worker's spool: hours of a busy service
PAGE = 4096

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Depth:
    """How many rows wait, since when the oldest does (UTC), and which part of the room they take, 0 to 1."""

    rows: int
    oldest: datetime | None
    filled: float


class Spool:
    """One file of spooled rows. Several threads may use it; it is made at its first row.

    A row is on the disk when `put` returns, and leaves it only by `remove`.
    """

    def __init__(self, folder: Path, name: str, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self.name, self._most_bytes = folder, name, most_bytes
        self._link: sqlite3.Connection | None = None
        self._owned: int | None = None  # descriptor of the lock
        self._depth = Depth(0, None, 0.0)  # as of the last change
        self._turn = threading.Lock()

    @property
    def file(self) -> Path:
        return self._folder / f"{self.name}.db"

    def put(self, rows: Sequence[Row], *, now: datetime) -> None:
        """Keep `rows`, all or none, each a tuple of what JSON and `str` can hold; `now` is UTC.

        Raises: NotNow where the disk or the spool is full, or the disk can't be written.
        """
        lines = [(json.dumps(row, default=str, ensure_ascii=False), str(now)) for row in rows]
        with self._turn:
            try:
                if self._owned is None:
                    self._own()
                with self._open() as link:  # a transaction
                    link.executemany("INSERT INTO spooled (log_row, spooled_at) VALUES (?, ?)", lines)
                self._count(len(lines))
            except (sqlite3.Error, OSError) as error:
                self._drop()
                reason = f"MariaDB is away and the spool takes nothing: {_said(error)}"
                raise NotNow(reason=reason, retry_after=5, cause="spool") from None

    def take(self, *, after: int, most: int) -> list[tuple[int, list[Any]]]:
        """The oldest rows with their numbers, `most` at the most, of those with a number above `after`."""
        with self._turn:
            if self._link is None and not self.file.exists():
                return []
            query = "SELECT number, log_row FROM spooled WHERE number > ? ORDER BY number LIMIT ?"
            return [(number, json.loads(line)) for number, line in self._open().execute(query, (after, most))]

    def remove(self, numbers: Sequence[int]) -> None:
        """Forget rows that have been logged."""
        with self._turn:
            with self._open() as link:
                link.executemany("DELETE FROM spooled WHERE number = ?", [(number,) for number in numbers])
            self._count(-len(numbers))

    def depth(self) -> Depth:
        """How many rows wait, and since when."""
        with self._turn:
            return self._depth

    def checkpoint(self) -> None:
        """Move what is in SQLite's log to its file; what was removed is overwritten then."""
        with self._turn:
            if self._link is not None:
                self._link.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Let go of it. An empty one is removed; the rows of another are for whoever adopts it."""
        empty = False
        with suppress(sqlite3.Error, OSError):
            empty = not self.take(after=0, most=1)
        self._drop()
        if self._owned is not None:
            if empty:
                for path in self._folder.glob(f"{self.name}.*"):
                    path.unlink(missing_ok=True)
            os.close(self._owned)
            self._owned = None

    def _count(self, more: int) -> None:
        link = self._open()
        oldest = link.execute("SELECT spooled_at FROM spooled ORDER BY number LIMIT 1").fetchone()
        pages, free = (link.execute(f"PRAGMA {what}_count").fetchone()[0] for what in ("page", "freelist"))
        moment = datetime.fromisoformat(oldest[0]) if oldest else None
        self._depth = Depth(self._depth.rows + more, moment, (pages - free) * PAGE / self._most_bytes)

    def _own(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._owned = _locked(self._folder / f"{self.name}.lock")

    def _open(self) -> sqlite3.Connection:
        if self._link is None:
            new = not self.file.exists()
            link = sqlite3.connect(self.file, timeout=5, check_same_thread=False)
            link.execute(f"PRAGMA page_size={PAGE}")
            link.execute("PRAGMA journal_mode=WAL")
            link.execute("PRAGMA synchronous=FULL")  # in WAL mode the default would not survive a power cut
            link.execute("PRAGMA secure_delete=ON")  # what has left is not to be found in the file
            link.execute(f"PRAGMA max_page_count={max(self._most_bytes // PAGE, 1)}")
            link.execute(
                "CREATE TABLE IF NOT EXISTS spooled"
                " (number INTEGER PRIMARY KEY AUTOINCREMENT, log_row TEXT NOT NULL, spooled_at TEXT NOT NULL)"
            )
            if new:
                _sync(self._folder)
            self._link = link
            (rows,) = link.execute("SELECT COUNT(*) FROM spooled").fetchone()
            self._depth = Depth(rows, None, 0.0)
            self._count(0)
        return self._link

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            with suppress(sqlite3.Error):
                link.close()


@contextmanager
def orphans(folder: Path) -> Iterator[Iterator[Spool]]:
    """The spools of dead workers in `folder`, each owned by this process while it is looked at."""

    def adopted() -> Generator[Spool]:
        for path in sorted(folder.glob("*.db")):
            if (owned := _locked(path.with_suffix(".lock"))) is None:
                continue  # its worker lives, or somebody else has adopted it
            spool = Spool(folder, path.stem)
            spool._owned = owned
            try:
                yield spool
            finally:
                spool.close()

    with closing(adopted()) as found:
        yield found


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock `path`, or None where another process does or has just removed it."""
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == path.stat().st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _sync(folder: Path) -> None:
    """Make a new file's name survive a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
