"""The file of a backup: a tar file. Its last two members describe the members before them.

The file is written and read as a stream, in constant memory. The header of a member is written a second time after its
content, because the size is known only then. `manifest.json` lists the size and the SHA-256 of every member.
`manifest.json.sha256` holds the hash of the manifest. A truncated archive lacks both files. `tar`, `sha256sum` and
`zstd` can unpack an archive without Evergreen.
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
FORMAT = 1  # version of the manifest's format and of the members' names
CHUNK = 1024 * 1024  # bytes
Progress = Callable[[str, int, int], None]  # (step, bytes done, bytes in total or 0 if unknown)


class MemberStream(io.RawIOBase):
    """A writable stream for the content of one member.

    size: the number of bytes written so far.
    digest: their SHA-256.

    `report` is called after each write with the position in the file, in bytes.
    """

    def __init__(self, file: IO[bytes], report: Callable[[int], None]) -> None:
        self._file, self._report = file, report
        self.size, self.digest = 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._file.write(content)
        self.digest.update(content)
        self.size += len(content)
        self._report(self._file.tell())
        return len(content)


class ArchiveWriter:
    """Writes an archive into `file`, which must be seekable: first its members one by one, then the manifest."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress
        self.members: dict[str, dict[str, Any]] = {}

    @contextmanager
    def member(self, name: str, *, doing: str, mode: int = 0o600, modified: float = 0) -> Iterator[MemberStream]:
        """Add a member. The block writes its content into the yielded stream.

        `doing`: the step for the progress. `modified`: the member's time of modification, in Unix seconds.
        """
        info = tarfile.TarInfo(name)
        info.mode, info.mtime = mode, modified
        start = self._file.tell()
        self._file.write(_build_header(info))
        sink = MemberStream(self._file, lambda size: self._progress(doing, size, 0))
        yield sink
        self._file.write(b"\0" * (-sink.size % tarfile.BLOCKSIZE))
        end, info.size = self._file.tell(), sink.size
        self._file.seek(start)
        self._file.write(_build_header(info))
        self._file.seek(end)
        self.members[name] = {"size": sink.size, "sha256": sink.digest.hexdigest()}

    def add(self, name: str, path: Path, *, doing: str) -> None:
        """Add the file at `path`. Its size may change during the copy. Raises: FileNotFoundError."""
        with path.open("rb") as source:
            stat = path.stat()
            with self.member(name, doing=doing, mode=stat.st_mode & 0o777, modified=stat.st_mtime) as sink:
                while chunk := source.read(CHUNK):
                    sink.write(chunk)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest` with the list of members, and the end of the tar."""
        manifest_content = json.dumps({"format": FORMAT, **manifest, "members": dict(self.members)}, indent=1).encode()
        for name, content in ((MANIFEST, manifest_content), (DIGEST, _build_digest_line(manifest_content))):
            with self.member(name, doing=name) as sink:
                sink.write(content)
        self._file.write(b"\0" * 2 * tarfile.BLOCKSIZE)


def _build_header(info: tarfile.TarInfo) -> bytes:
    """Build the tar header of a member. Its length is constant: GNU's format stores any size in the same field."""
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _build_digest_line(content: bytes) -> bytes:
    """Build the line with the hash of the manifest, in the format of `sha256sum`."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


class Archive:
    """An archive whose manifest matches its hash. `check_members` checks the other members."""

    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        """Raises: IntegrityError if the archive is truncated, or its manifest does not match its hash."""
        self.path, self._tar = path, tar
        members = self._tar.getmembers()
        self._members = {member.name: member for member in members}
        if MANIFEST not in self._members or DIGEST not in self._members:
            raise IntegrityError(what=str(path), expected=f"{MANIFEST} at its end", found="none")
        content = self.read(MANIFEST)
        if _build_digest_line(content) != self.read(DIGEST):
            raise IntegrityError(what=f"{path}: {MANIFEST}", expected=f"what {DIGEST} says", found="something else")
        self.manifest: dict[str, Any] = json.loads(content)
        self.sizes: dict[str, int] = {name: entry["size"] for name, entry in self.manifest["members"].items()}
        if sorted([*self.sizes, MANIFEST, DIGEST]) != sorted(member.name for member in members):
            raise IntegrityError(what=str(path), expected=f"the members of its {MANIFEST}", found="others")

    def names(self, folder: str = "") -> list[str]:
        """The names of the members in `folder`, such as `home/`, in their order in the archive."""
        return [name for name in self.sizes if name.startswith(folder)]

    def open(self, name: str) -> IO[bytes]:
        """Open the content of a member. Raises: NotFound."""
        content = self._tar.extractfile(self._members[name]) if name in self._members else None
        if content is None:
            raise NotFound(what=f"member {name}", where=str(self.path))
        return content

    def read(self, name: str) -> bytes:
        """The whole content of a small member. Raises: NotFound."""
        with self.open(name) as content:
            return content.read()

    def extract(self, name: str, folder: Path) -> None:
        """Write a member below `folder`, under its own name. A name that leads out of the folder is rejected."""
        self._tar.extract(self._members[name], folder, filter="data")

    def check_members(self, progress: Progress) -> None:
        """Check the hash of every member. Raises: IntegrityError with the name of the first wrong member."""
        done_bytes, total_bytes = 0, sum(self.sizes.values())
        for name, entry in self.manifest["members"].items():
            digest = hashlib.sha256()
            with self.open(name) as content:
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
                    done_bytes += len(chunk)
                    progress("checking", done_bytes, total_bytes)
            if (actual := digest.hexdigest()) != entry["sha256"]:
                raise IntegrityError(what=f"{self.path}: {name}", expected=entry["sha256"][:12], found=actual[:12])


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open the archive at `path` for the block. Raises: NotFound; IntegrityError if the file is no complete backup."""
    if not path.is_file():
        raise NotFound(what=f"file {path}")
    with ExitStack() as stack:
        try:
            archive = Archive(path, stack.enter_context(tarfile.open(path, "r:")))
        except (tarfile.TarError, ValueError, KeyError) as error:
            raise IntegrityError(what=str(path), expected="a whole backup", found=str(error)) from None
        yield archive
