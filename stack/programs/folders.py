"""The folders of one stack, below `settings.home`."""

import hashlib
import os
from pathlib import Path

from utils.errors import StackError
from utils.settings import Settings

SOCKET_PATH_BYTES = 100  # the kernel rejects socket paths longer than 104 to 108 bytes
LONGEST_SOCKET_NAME = len("/supervisor.sock.1234567")


def logs(settings: Settings) -> Path:
    """The folder with one log file per program."""
    return settings.home / "logs"


def runtime(settings: Settings) -> Path:
    """The folder for sockets and process ids: `home/run`, or a folder in /tmp if that path is too long for a socket.

    A missing folder is created. Raises: StackError if the folder belongs to another user.
    """
    folder = settings.home.resolve() / "run"
    if len(os.fsencode(folder)) + LONGEST_SOCKET_NAME > SOCKET_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        # $TMPDIR is not used, because its path may be long too.
        folder = Path("/tmp") / f"evergreen-{os.getuid()}-{digest}"  # noqa: S108 - its owner is checked below
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StackError(f"{folder} belongs to another user: remove it, or set EVERGREEN_HOME to a shorter path")
    return folder
