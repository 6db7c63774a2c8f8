"""The file of a backup: a plain tar, whose last members say what all others must be.

It is written and read as a stream, in constant memory: a member's size and SHA-256 are known only at its end, so its
header is written again then. `manifest.json` names every member with both, and `manifest.json.sha256` vouches for it;
an archive that was cut off has neither. `tar`, `sha256sum` and `zstd` can take one apart without Evergreen.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import IntegrityError, NotFound

MANIFEST, DIGEST = "manifest.json", "manifest.json.sha256"
FORMAT = 1  # of the manifest and the names of members
CHUNK = 1024 * 1024  # bytes
Progress = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all (0 where nobody knows)


class Sink(io.RawIOBase):
    """Where the content of one member goes."""

    def __init__(self, file: IO[bytes], told: Callable[[int], None]) -> None:
        self._file, self._told = file, told
        self.size, self.digest = 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._file.write(content)
        self.digest.update(content)
        self.size += len(content)
        self._told(self._file.tell())
        return len(content)


class Writer:
    """Writes members one after the other into `file`, which must be seekable, and the manifest after the last."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress
        self.members: dict[str, dict[str, Any]] = {}

    @contextmanager
    def member(self, name: str, *, doing: str, mode: int = 0o600, modified: float = 0) -> Iterator[Sink]:
        """A new member whose content is what the block writes; `modified` is its Unix time."""
        described = tarfile.TarInfo(name)
        described.mode, described.mtime = mode, modified
        begin = self._file.tell()
        self._file.write(_header(described))
        sink = Sink(self._file, lambda size: self._progress(doing, size, 0))
        yield sink
        self._file.write(b"\0" * (-sink.size % tarfile.BLOCKSIZE))
        end, described.size = self._file.tell(), sink.size
        self._file.seek(begin)
        self._file.write(_header(described))
        self._file.seek(end)
        self.members[name] = {"size": sink.size, "sha256": sink.digest.hexdigest()}

    def add(self, name: str, path: Path, *, doing: str) -> None:
        """The file at `path` as it is now; it may grow or shrink meanwhile. Raises: FileNotFoundError."""
        with path.open("rb") as source:
            found = path.stat()
            with self.member(name, doing=doing, mode=found.st_mode & 0o777, modified=found.st_mtime) as sink:
                while chunk := source.read(CHUNK):
                    sink.write(chunk)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest`, completed with the members, and the end of the tar."""
        content = json.dumps({"format": FORMAT, **manifest, "members": dict(self.members)}, indent=1).encode()
        for name, text in ((MANIFEST, content), (DIGEST, _digest_line(content))):
            with self.member(name, doing=name) as sink:
                sink.write(text)
        self._file.write(b"\0" * 2 * tarfile.BLOCKSIZE)


def _header(described: tarfile.TarInfo) -> bytes:
    """Of the same length whatever the size: GNU's format keeps sizes above 8 GiB in the same field."""
    return described.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _digest_line(content: bytes) -> bytes:
    """As `sha256sum` writes and checks it."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


class Archive:
    """An archive whose manifest is whole. Its other members are so only after `verify`."""

    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        """Raises: IntegrityError where it is cut off, or its manifest is not what was written."""
        self.path, self._tar = path, tar
        members = self._tar.getmembers()
        self._members = {member.name: member for member in members}
        if MANIFEST not in self._members or DIGEST not in self._members:
            raise IntegrityError(what=str(path), expected=f"{MANIFEST} at its end", found="none")
        content = self.read(MANIFEST)
        if _digest_line(content) != self.read(DIGEST):
            raise IntegrityError(what=f"{path}: {MANIFEST}", expected=f"what {DIGEST} says", found="something else")
        self.manifest: dict[str, Any] = json.loads(content)
        self.sizes: dict[str, int] = {name: said["size"] for name, said in self.manifest["members"].items()}
        if sorted([*self.sizes, MANIFEST, DIGEST]) != sorted(member.name for member in members):
            raise IntegrityError(what=str(path), expected=f"the members of its {MANIFEST}", found="others")

    def names(self, folder: str = "") -> list[str]:
        """The members in `folder`, such as `home/`, in the order they lie in."""
        return [name for name in self.sizes if name.startswith(folder)]

    def open(self, name: str) -> IO[bytes]:
        """The content of a member. Raises: NotFound."""
        content = self._tar.extractfile(self._members[name]) if name in self._members else None
        if content is None:
            raise NotFound(what=f"member {name}", where=str(self.path))
        return content

    def read(self, name: str) -> bytes:
        """The whole content of a small member. Raises: NotFound."""
        with self.open(name) as content:
            return content.read()

    def extract(self, name: str, folder: Path) -> None:
        """Write a member to its own name below `folder`, never outside of it."""
        self._tar.extract(self._members[name], folder, filter="data")

    def verify(self, progress: Progress) -> None:
        """Read everything once. Raises: IntegrityError naming the first member that is not what was written."""
        done, total = 0, sum(self.sizes.values())
        for name, said in self.manifest["members"].items():
            digest = hashlib.sha256()
            with self.open(name) as content:
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    progress("checking", done, total)
            if (found := digest.hexdigest()) != said["sha256"]:
                raise IntegrityError(what=f"{self.path}: {name}", expected=said["sha256"][:12], found=found[:12])


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive at `path`. Raises: NotFound; IntegrityError where it is no backup, or not a whole one."""
    if not path.is_file():
        raise NotFound(what=f"file {path}")
    with ExitStack() as stack:
        try:
            archive = Archive(path, stack.enter_context(tarfile.open(path, "r:")))
        except (tarfile.TarError, ValueError, KeyError) as error:
            raise IntegrityError(what=str(path), expected="a whole backup", found=str(error)) from None
        yield archive
