"""Where the parts of one stack keep what they need, below `settings.home`."""

import hashlib
import os
from pathlib import Path

from utils.errors import StackError
from utils.settings import Settings

SOCKET_PATH_BYTES = 100  # a longer path of a Unix socket is refused by the kernel at 104 to 108 bytes
LONGEST_SOCKET_NAME = len("/supervisor.sock.1234567")


def logs(settings: Settings) -> Path:
    """One log file a part."""
    return settings.home / "logs"


def runtime(settings: Settings) -> Path:
    """A folder for sockets and process ids, made if it is missing: `home/run`, or where that is too long one in /tmp.

    Raises: StackError where the folder in /tmp belongs to somebody else.
    """
    folder = settings.home.resolve() / "run"
    if len(os.fsencode(folder)) + LONGEST_SOCKET_NAME > SOCKET_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        # The short, shared folder by name: $TMPDIR may itself be long.
        folder = Path("/tmp") / f"evergreen-{os.getuid()}-{digest}"  # noqa: S108 - its owner is checked below
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StackError(f"{folder} belongs to another user: remove it, or set EVERGREEN_HOME to a shorter path")
    return folder
