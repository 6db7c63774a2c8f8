"""The release and the commit of the running code. Every model version and prediction can be traced to the commit."""

import hashlib
import os
import subprocess
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("api", "cli", "dags", "db", "pipelines", "stack", "utils")


@cache
def code_commit() -> str:
    """Return the commit of the running code, from the first of these sources:

    1. `EVERGREEN_COMMIT`, set while an image is built;
    2. git, with `-dirty` added when tracked files differ from the commit;
    3. `.git_archival.txt`, which `git archive` fills in;
    4. `source-` and the first 40 digits of a SHA-256 over the Python files.
    """
    if commit := os.environ.get("EVERGREEN_COMMIT"):
        return commit
    if (ROOT / ".git").exists():
        try:
            # Git checks the folder's owner to protect against foreign hooks. These commands run no hooks.
            git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
            head = subprocess.run(
                [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
            ).stdout.strip()
            dirty = subprocess.run([*git, "diff-index", "--quiet", "HEAD"], capture_output=True).returncode
            return f"{head}-dirty" if dirty else head
        except (OSError, subprocess.CalledProcessError):
            pass  # no git program, or a repository without a commit
    archival = ROOT / ".git_archival.txt"
    if archival.exists() and not (name := archival.read_text().strip()).startswith("$Format"):
        return name
    return f"source-{source_hash()[:40]}"


def release() -> str:
    """Return the version from pyproject.toml, its only source. Images contain the file too."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def source_hash() -> str:
    """Return the SHA-256 in hex over the paths and bytes of all Python files of the product, in path order."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in SOURCE_FOLDERS for p in (ROOT / folder).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
