"""Who may ask a prediction service: bearer keys by name, of which only hashes are kept.

    HOME/keys/keys.json    [{"name", "sha256", "created_at"}, …], mode 600, replaced whole

The folder is shared by the services of all models. Every worker looks once a second whether the file is another one, so
keys come and go without a restart. A key has 256 random bits, so a plain SHA-256 can't be guessed back.
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

LOOK = 1.0  # seconds between two looks at the file
SCHEME = b"bearer"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What is kept of a key. `created_at` is UTC, ISO 8601."""

    name: str
    sha256: str
    created_at: str


class KeyFile:
    """The keys that `evergreen keys` made. Nothing is read before it is asked for."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.home / "keys" / "keys.json"

    def read(self) -> list[ClientKey]:
        """All keys, the oldest first; none where there is no file.

        Raises: IntegrityError where the file is not one of ours, OSError where it can't be read.
        """
        try:
            return [ClientKey(**each) for each in json.loads(self.path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            found = type(error).__name__
            raise IntegrityError(what=f"{self.path}", expected="a list of keys", found=found) from None

    def add(self, name: str, *, now: datetime) -> str:
        """A new key, which is returned here and kept nowhere. More than one may have a name, while it is exchanged.

        `now` is UTC. Raises: IntegrityError.
        """
        token = f"eg_{secrets.token_urlsafe(32)}"
        with self._locked():
            self._write([*self.read(), ClientKey(name, sha256(token.encode()).hexdigest(), f"{now:%FT%TZ}")])
        return token

    def remove(self, name: str, *, older: bool = False) -> int:
        """Remove all keys of `name`, or all but its newest; returns how many.

        Raises: NotFound where there is none to remove; IntegrityError.
        """
        with self._locked():
            keys = self.read()
            mine = [key for key in keys if key.name == name]
            gone = mine[:-1] if older else mine
            if not gone:
                raise NotFound(what=f"{'older ' if older else ''}key named {name!r}", where=str(self.path))
            self._write([key for key in keys if key not in gone])
        return len(gone)

    def _write(self, keys: list[ClientKey]) -> None:
        write_private(self.path, json.dumps([asdict(key) for key in keys], indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Keys:
    """Says for a worker which requests may pass: those with a key of the file, or with EVERGREEN_API_KEY.

    None is needed where there are neither. Once a worker has seen the file, one is needed for good: with the last key
    removed nobody may ask, and a file that is lost or damaged changes nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = KeyFile(settings)
        own = settings.api_key.get_secret_value()
        self._own = [sha256(own.encode()).digest()] if own else []
        self._made: list[bytes] = []
        self._seen: tuple[int, ...] | None = None
        self._next_look = 0.0

    @property
    def are_needed(self) -> bool:
        """Whether a request must have one."""
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + LOOK
            self._look()
        return bool(self._own) or self._seen is not None

    def allow(self, authorization: bytes) -> bool:
        """Whether a request with this header may pass; in a time that says nothing of any key."""
        if not self.are_needed:
            return True
        scheme, _, token = authorization.partition(b" ")
        given, known = sha256(token.strip()).digest(), False
        for each in (*self._own, *self._made):
            known |= hmac.compare_digest(given, each)
        return known and scheme.lower() == SCHEME

    def _look(self) -> None:
        try:
            stat = self._file.path.stat()
        except FileNotFoundError:
            return
        except OSError:
            seen: tuple[int, ...] = ()  # it is there, and can't be read
        else:
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._made = [bytes.fromhex(key.sha256) for key in self._file.read()]
        except (OSError, IntegrityError, ValueError) as error:
            log.error("keys stay as they were read last: %s", error)
