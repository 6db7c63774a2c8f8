"""The programs' log files, shown and followed."""

import sys
import time
from collections import deque
from pathlib import Path

from stack.programs.folders import logs
from utils.errors import NotFound
from utils.settings import Settings

LOG_POLL = 0.3  # seconds


def show(settings: Settings, *, part: str | None, lines: int, follow: bool) -> None:
    """Write the last `lines` of each log, or of that of `part`, to standard output; with `follow` all that comes too.

    Raises: NotFound naming the logs there are.
    """
    files = {file.stem: file for file in sorted(logs(settings).glob("*.log"))}
    if part and part not in files:
        known = f"logs are {', '.join(files)}" if files else "nothing was started yet"
        raise NotFound(what=f"log of {part!r}", where=str(logs(settings)), hint=known)
    chosen = {part: files[part]} if part else files
    ends = {name: _tail(name, file, lines, named=len(chosen) > 1) for name, file in chosen.items()}
    while follow:
        time.sleep(LOG_POLL)
        ends = {name: _newer(name, file, ends[name], named=len(chosen) > 1) for name, file in chosen.items()}


def size(log: Path) -> int:
    """Its length in bytes: a sign for a `Patience`."""
    return log.stat().st_size if log.exists() else 0


def last_words(log: Path, *, lines: int = 30) -> str:
    """The last `lines` of a log that say anything."""
    written = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([line[:300] for line in written.splitlines() if line.strip()][-lines:]) or "nothing"


def _tail(name: str, file: Path, lines: int, *, named: bool) -> int:
    with file.open(errors="replace") as opened:
        _write(name, list(deque(opened, lines)), named=named)
        return opened.tell()


def _newer(name: str, file: Path, end: int, *, named: bool) -> int:
    """What was written behind `end`, a position; from the beginning where the file was rotated meanwhile."""
    try:
        with file.open(errors="replace") as opened:
            opened.seek(end if file.stat().st_size >= end else 0)
            _write(name, opened.readlines(), named=named)
            return opened.tell()
    except FileNotFoundError:  # between the two steps of a rotation
        return 0


def _write(name: str, lines: list[str], *, named: bool) -> None:
    head = f"{name} | " if named else ""
    sys.stdout.writelines(f"{head}{line.rstrip()}\n" for line in lines)
    sys.stdout.flush()
