"""Files that are replaced whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_private(path: Path, content: str) -> None:
    """Replace the file at `path` in one step, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(made).replace(path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
