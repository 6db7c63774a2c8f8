"""Bearer keys of the clients of a prediction service. Each key has a name, and only its hash is stored.

    HOME/keys/keys.json    [{"name", "sha256", "created_at"}, …], mode 600, replaced as a whole

The services of all models share the folder. Every worker checks once a second whether the file has changed, so adding
and removing keys needs no restart. A key has 256 random bits, so nobody can guess it from a plain SHA-256.
"""

import fcntl
import hmac
import json
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256

from utils.errors import IntegrityError, NotFound
from utils.private_files import write_private
from utils.settings import Settings

LOOK = 1.0  # seconds between two checks of the file
SCHEME = b"bearer"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientKey:
    """The stored part of a key.

    name: the client's name. Several keys may share a name.
    sha256: the key's hash, as hex digits.
    created_at: the key's creation in UTC, ISO 8601.
    """

    name: str
    sha256: str
    created_at: str


class KeyFile:
    """The keys made by `evergreen keys`. Nothing is read before the first call."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.home / "keys" / "keys.json"

    def read(self) -> list[ClientKey]:
        """All keys, the oldest first. Empty if the file does not exist.

        Raises: IntegrityError if the file is not a list of keys; OSError if the file can't be read.
        """
        try:
            return [ClientKey(**entry) for entry in json.loads(self.path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            problem = type(error).__name__
            raise IntegrityError(what=f"{self.path}", expected="a list of keys", found=problem) from None

    def add(self, name: str, *, now: datetime) -> str:
        """Add a key called `name` and return it. The key itself is stored nowhere.

        Several keys may share a name, so that a client can change from one to the next. `now` is UTC.

        Raises: IntegrityError.
        """
        token = f"eg_{secrets.token_urlsafe(32)}"
        with self._locked():
            self._write([*self.read(), ClientKey(name, sha256(token.encode()).hexdigest(), f"{now:%FT%TZ}")])
        return token

    def remove(self, name: str, *, older: bool = False) -> int:
        """Remove all keys called `name`, with `older` all but the newest. Return the number of removed keys.

        Raises: NotFound if there is no key to remove; IntegrityError.
        """
        with self._locked():
            keys = self.read()
            matches = [key for key in keys if key.name == name]
            removed = matches[:-1] if older else matches
            if not removed:
                raise NotFound(what=f"{'older ' if older else ''}key named {name!r}", where=str(self.path))
            self._write([key for key in keys if key not in removed])
        return len(removed)

    def _write(self, keys: list[ClientKey]) -> None:
        write_private(self.path, json.dumps([asdict(key) for key in keys], indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Keys:
    """One worker's check of requests. A request passes with a key of the file or with EVERGREEN_API_KEY.

    Requests need no key if neither exists. Once a worker has seen the file, every request needs a key until the worker
    ends. Removing the last key then locks out all clients. A lost or damaged file changes nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = KeyFile(settings)
        api_key = settings.api_key.get_secret_value()
        self._api_key_hashes = [sha256(api_key.encode()).digest()] if api_key else []
        self._file_hashes: list[bytes] = []
        self._file_state: tuple[int, ...] | None = None  # time of change, inode and size
        self._next_look = 0.0

    @property
    def are_needed(self) -> bool:
        """Whether a request must carry a key."""
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + LOOK
            self._look()
        return bool(self._api_key_hashes) or self._file_state is not None

    def allow(self, authorization: bytes) -> bool:
        """Whether a request with this header may pass. The time it takes reveals nothing about any key."""
        if not self.are_needed:
            return True
        scheme, _, token = authorization.partition(b" ")
        digest, is_match = sha256(token.strip()).digest(), False
        for key_hash in (*self._api_key_hashes, *self._file_hashes):
            is_match |= hmac.compare_digest(digest, key_hash)
        return is_match and scheme.lower() == SCHEME

    def _look(self) -> None:
        try:
            stat = self._file.path.stat()
        except FileNotFoundError:
            return
        except OSError:
            file_state: tuple[int, ...] = ()  # the file exists and can't be read
        else:
            file_state = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if file_state == self._file_state:
            return
        self._file_state = file_state
        try:
            self._file_hashes = [bytes.fromhex(key.sha256) for key in self._file.read()]
        except (OSError, IntegrityError, ValueError) as error:
            log.error("the key file can't be read, the keys stay as they were: %s", error)
