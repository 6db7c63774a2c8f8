"""The rejects of a load: their file, their counts by reason, and the limit on their number."""

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from utils.settings import Settings

HEADER = ("line", "column", "value", "reason")
# A load above its limit stops early at this number of rejects. The file is then the wrong one.
MOST = 10_000

Reject = tuple[int, str, str, str]  # line, column, value, reason


@dataclass(frozen=True, slots=True)
class MaxRejects:
    """The limit on the rejects of a load: a `share` of its rows, or a `count` if `share` is None."""

    share: float | None = None
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> "MaxRejects":
        """Parse a number of rows like `20`, or a share like `0.5%`.

        Raises: ValueError.
        """
        if not (match := re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*%", text.strip())) or float(match[2] or 0) > 100:
            raise ValueError(f"expected a number of rows like 20 or a share like 0.5%, got {text!r}")
        return cls(count=int(match[1])) if match[1] else cls(share=float(match[2]) / 100)

    def __str__(self) -> str:
        return f"{self.count:,}" if self.share is None else f"{self.share * 100:g}%"

    def exceeded(self, rejects: int, *, rows: int) -> bool:
        """Whether a load of `rows` rows has too many `rejects`."""
        return rejects > (self.count if self.share is None else self.share * rows)

    def hopeless(self, rejects: int, *, rows: int) -> bool:
        """Whether a load has failed after its first `rows` rows. A share may still fall, up to `MOST` rejects."""
        return self.exceeded(rejects, rows=rows) and (self.share is None or rejects >= MOST)


NONE = MaxRejects()


class RejectList:
    """Counts the rejects of one load, and writes them to the file at `path`.

    Only the user can read the file (mode 600). The next load from the same source replaces the file, or deletes it if
    there are no rejects.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self.first: Reject | None = None
        self._reasons: Counter[str] = Counter()
        self._file: TextIO | None = None

    def __enter__(self) -> "RejectList":
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    @property
    def reasons(self) -> dict[str, int]:
        """The number of rows by `column: reason`, the most frequent first."""
        return dict(self._reasons.most_common())

    def add(self, rejects: Iterable[Reject]) -> None:
        """Add the rejects of later lines."""
        ordered = sorted(rejects)
        if not ordered:
            return
        if self._file is None:
            self.first = ordered[0]
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = open(os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", newline="")  # noqa: PTH123, SIM115 - mode 600 from the first byte on
            csv.writer(self._file).writerow(HEADER)
        csv.writer(self._file).writerows(ordered)
        self.count += len(ordered)
        self._reasons.update(f"{column}: {reason}" for _, column, _, reason in ordered)


def rejects_path(settings: Settings, *, model: str, source: str) -> Path:
    """The path of the rejects of a load from `source`, a path or another name."""
    # Files in different folders may share a name.
    path_hash = hashlib.sha256(str(Path(source).absolute()).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "_", Path(source).name)[:100]
    return settings.rejects / model / f"{name}.{path_hash}.csv"
