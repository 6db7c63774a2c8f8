"""Rows that a load refuses: written to a file of their own, counted by reason, and too many or not."""

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
# A load that refuses so many rows, more than its share so far, is given up before its end: it is the wrong file.
MOST = 10_000

Reject = tuple[int, str, str, str]  # line, column, value, reason


@dataclass(frozen=True, slots=True)
class MaxRejects:
    """How many rows a load may refuse and still go in: a `share` of its rows, or a `count` of them."""

    share: float | None = None
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> "MaxRejects":
        """`20` rows, or `0.5%` of them.

        Raises: ValueError.
        """
        if not (match := re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*%", text.strip())) or float(match[2] or 0) > 100:
            raise ValueError(f"expected a number of rows like 20 or a share like 0.5%, got {text!r}")
        return cls(count=int(match[1])) if match[1] else cls(share=float(match[2]) / 100)

    def __str__(self) -> str:
        return f"{self.count:,}" if self.share is None else f"{self.share * 100:g}%"

    def exceeded(self, rejects: int, *, rows: int) -> bool:
        """Whether `rejects` of all the `rows` of a load are too many."""
        return rejects > (self.count if self.share is None else self.share * rows)

    def hopeless(self, rejects: int, *, rows: int) -> bool:
        """Whether they are too many already, after the first `rows`: a share may still recover, up to `MOST`."""
        return self.exceeded(rejects, rows=rows) and (self.share is None or rejects >= MOST)


NONE = MaxRejects()


class RejectList:
    """The refused rows of one load: counted, and written to the file at `path` from the first one on.

    The file is the user's alone (mode 600). It is replaced by the next load from the same place, and gone where that
    one refuses nothing.
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
        """Rows by `column: reason`, the most frequent one first."""
        return dict(self._reasons.most_common())

    def add(self, rejects: Iterable[Reject]) -> None:
        """Write down some more, those of later lines."""
        found = sorted(rejects)
        if not found:
            return
        if self._file is None:
            self.first = found[0]
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = open(os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", newline="")  # noqa: PTH123, SIM115 - mode 600 from its first byte on
            csv.writer(self._file).writerow(HEADER)
        csv.writer(self._file).writerows(found)
        self.count += len(found)
        self._reasons.update(f"{column}: {reason}" for _, column, _, reason in found)


def rejects_path(settings: Settings, *, model: str, source: str) -> Path:
    """Where the refused rows of a load from `source`, a path or another name, are written."""
    place = hashlib.sha256(str(Path(source).absolute()).encode()).hexdigest()[:8]  # files of one name, many folders
    name = re.sub(r"[^\w.-]+", "_", Path(source).name)[:100]
    return settings.rejects / model / f"{name}.{place}.csv"
