"""The spool: answered predictions that MariaDB has not taken yet, on the service's own disk.

HOME/spool/MODEL/
├── INSTANCE.db     SQLite, one file a worker: answered predictions that are not logged yet
└── INSTANCE.lock   held while the worker lives: a process that can lock it has found the spool of a dead worker
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
    """How full a spool is.

    rows: rows that wait.
    oldest: when the oldest row was spooled, UTC. None if the spool is empty.
    filled: share of the permitted size that is used, 0 to 1.
    """

    rows: int
    oldest: datetime | None
    filled: float


class Spool:
    """One file of spooled rows, created with the first row. Several threads may use it.

    A row is on the disk when `put` returns. Only `remove` deletes it.
    """

    def __init__(self, folder: Path, name: str, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self.name, self._most_bytes = folder, name, most_bytes
        self._link: sqlite3.Connection | None = None
        self._lock: int | None = None  # descriptor of the lock file
        self._depth = Depth(0, None, 0.0)  # as of the last change
        self._mutex = threading.Lock()

    @property
    def file(self) -> Path:
        return self._folder / f"{self.name}.db"

    def put(self, rows: Sequence[Row], *, now: datetime) -> None:
        """Store all `rows` or none of them. Values that JSON does not know are stored as `str`. `now` is UTC.

        Raises: NotNow if the disk or the spool is full, or the disk can't be written.
        """
        lines = [(json.dumps(row, default=str, ensure_ascii=False), str(now)) for row in rows]
        with self._mutex:
            try:
                if self._lock is None:
                    self._own()
                with self._open() as link:  # a transaction
                    link.executemany("INSERT INTO spooled (log_row, spooled_at) VALUES (?, ?)", lines)
                self._count(len(lines))
            except (sqlite3.Error, OSError) as error:
                self._drop()
                reason = f"MariaDB is away and the spool takes nothing: {_message(error)}"
                raise NotNow(reason=reason, retry_after=5, cause="spool") from None

    def take(self, *, after: int, most: int) -> list[tuple[int, list[Any]]]:
        """The oldest rows with a number above `after`, each with its number. At most `most` rows."""
        with self._mutex:
            if self._link is None and not self.file.exists():
                return []
            query = "SELECT number, log_row FROM spooled WHERE number > ? ORDER BY number LIMIT ?"
            return [(number, json.loads(line)) for number, line in self._open().execute(query, (after, most))]

    def remove(self, numbers: Sequence[int]) -> None:
        """Delete rows that have been logged."""
        with self._mutex:
            with self._open() as link:
                link.executemany("DELETE FROM spooled WHERE number = ?", [(number,) for number in numbers])
            self._count(-len(numbers))

    def depth(self) -> Depth:
        """How full the spool is, as of its last change."""
        with self._mutex:
            return self._depth

    def checkpoint(self) -> None:
        """Move SQLite's write-ahead log into its file. This overwrites removed rows."""
        with self._mutex:
            if self._link is not None:
                self._link.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file and unlock it. An empty spool is removed. Another worker adopts the rows of a full one."""
        empty = False
        with suppress(sqlite3.Error, OSError):
            empty = not self.take(after=0, most=1)
        self._drop()
        if self._lock is not None:
            if empty:
                for path in self._folder.glob(f"{self.name}.*"):
                    path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _count(self, change: int) -> None:
        """Bring the depth up to date after `change` more rows, or fewer if it is negative."""
        link = self._open()
        oldest = link.execute("SELECT spooled_at FROM spooled ORDER BY number LIMIT 1").fetchone()
        pages, free = (link.execute(f"PRAGMA {kind}_count").fetchone()[0] for kind in ("page", "freelist"))
        spooled_at = datetime.fromisoformat(oldest[0]) if oldest else None
        self._depth = Depth(self._depth.rows + change, spooled_at, (pages - free) * PAGE / self._most_bytes)

    def _own(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._folder / f"{self.name}.lock")

    def _open(self) -> sqlite3.Connection:
        if self._link is None:
            is_new = not self.file.exists()
            link = sqlite3.connect(self.file, timeout=5, check_same_thread=False)
            link.execute(f"PRAGMA page_size={PAGE}")
            link.execute("PRAGMA journal_mode=WAL")
            link.execute("PRAGMA synchronous=FULL")  # in WAL mode the default would not survive a power cut
            link.execute("PRAGMA secure_delete=ON")  # overwrites removed rows
            link.execute(f"PRAGMA max_page_count={max(self._most_bytes // PAGE, 1)}")
            link.execute(
                "CREATE TABLE IF NOT EXISTS spooled"
                " (number INTEGER PRIMARY KEY AUTOINCREMENT, log_row TEXT NOT NULL, spooled_at TEXT NOT NULL)"
            )
            if is_new:
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
    """The spools of dead workers in `folder`. This process holds the lock of each spool until the next one."""

    def adopt() -> Generator[Spool]:
        for path in sorted(folder.glob("*.db")):
            if (lock := _locked(path.with_suffix(".lock"))) is None:
                continue  # its worker lives, or another process has adopted it
            spool = Spool(folder, path.stem)
            spool._lock = lock
            try:
                yield spool
            finally:
                spool.close()

    with closing(adopt()) as spools:
        yield spools


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on `path`. None if another process holds it or has just removed the file."""
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
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _message(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
