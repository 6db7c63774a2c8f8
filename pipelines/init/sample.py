"""The first rows of a file, from which a model file is guessed."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.loading.files import readable
from utils.errors import DataRefused

ROWS, BYTES = 200_000, 256 << 20  # the limits of a sample


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a file. `whole`: whether these are all rows of the file."""

    source: str
    rows: pa.Table
    whole: bool

    @property
    def said(self) -> str:
        """The number of rows, in words."""
        return f"all {self.rows.num_rows:,} rows" if self.whole else f"the first {self.rows.num_rows:,} rows"


def sample_of(path: Path, *, rows: int = ROWS) -> Sample:
    """Read the first `rows` rows of the file at `path`, or as many as fit into 256 MB.

    Raises: NotFound, DataRefused.
    """
    tables: list[pa.Table] = []
    count = size = 0
    whole = True
    with readable(path) as file:
        for chunk in file.chunks(list(file.names)):
            if count >= rows or size >= BYTES:
                whole = False
                break
            tables.append(chunk.rows.slice(0, rows - count))
            count, size = count + tables[-1].num_rows, size + tables[-1].nbytes
            whole = tables[-1].num_rows == chunk.rows.num_rows
    if not count:
        raise DataRefused(f"{path.name}: holds no rows to guess from")
    return Sample(path.name, pa.concat_tables(tables), whole)
