"""Show and follow the log files of the programs."""

import sys
import time
from collections import deque
from pathlib import Path

from stack.programs.folders import logs
from utils.errors import NotFound
from utils.settings import Settings

LOG_POLL = 0.3  # seconds between two reads


def show(settings: Settings, *, part: str | None, lines: int, follow: bool) -> None:
    """Write the last `lines` of the log of `part`, or of all logs, to standard output.

    With `follow`, new lines are written until the process is interrupted.

    Raises: NotFound with the names of the existing logs.
    """
    files = {file.stem: file for file in sorted(logs(settings).glob("*.log"))}
    if part and part not in files:
        hint = f"logs are {', '.join(files)}" if files else "nothing was started yet"
        raise NotFound(what=f"log of {part!r}", where=str(logs(settings)), hint=hint)
    shown_files = {part: files[part]} if part else files
    positions = {
        name: _write_last_lines(name, file, lines, with_name=len(shown_files) > 1) for name, file in shown_files.items()
    }
    while follow:
        time.sleep(LOG_POLL)
        positions = {
            name: _write_new_lines(name, file, positions[name], with_name=len(shown_files) > 1)
            for name, file in shown_files.items()
        }


def size(log: Path) -> int:
    """The size of `log` in bytes, 0 if it does not exist. It serves as a sign of progress for a `Patience`."""
    return log.stat().st_size if log.exists() else 0


def last_lines(log: Path, *, lines: int = 30) -> str:
    """The last `lines` lines of `log`, without blank lines. The text "nothing" if there are no lines."""
    content = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([line[:300] for line in content.splitlines() if line.strip()][-lines:]) or "nothing"


def _write_last_lines(name: str, file: Path, lines: int, *, with_name: bool) -> int:
    with file.open(errors="replace") as stream:
        _write(name, list(deque(stream, lines)), with_name=with_name)
        return stream.tell()


def _write_new_lines(name: str, file: Path, position: int, *, with_name: bool) -> int:
    """Write the content after `position` (bytes), or the whole file if it was rotated. Return the new position."""
    try:
        with file.open(errors="replace") as stream:
            stream.seek(position if file.stat().st_size >= position else 0)
            _write(name, stream.readlines(), with_name=with_name)
            return stream.tell()
    except FileNotFoundError:  # the file is being rotated
        return 0


def _write(name: str, lines: list[str], *, with_name: bool) -> None:
    prefix = f"{name} | " if with_name else ""
    sys.stdout.writelines(f"{prefix}{line.rstrip()}\n" for line in lines)
    sys.stdout.flush()
