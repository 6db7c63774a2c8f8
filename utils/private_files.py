"""Files that are replaced completely or not at all."""

import os
import tempfile
from pathlib import Path


def write_private(path: Path, content: str) -> None:
    """Replace the file at `path` in one step. Only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
