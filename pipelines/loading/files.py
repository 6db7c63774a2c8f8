"""Read files of rows in chunks of bounded size: CSV (plain, gzip or standard input) and Parquet."""

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipelines.loading.rejects import Reject
from utils.errors import DataRefused, NotFound

CHUNK_ROWS = 100_000  # of Parquet
CHUNK_BYTES = 16 << 20  # of CSV
LONGEST_ROW = 16 << 20  # bytes
STDIN = Path("-")
ENDINGS = (".csv", ".csv.gz", ".parquet")
BOMS = (  # UTF-32 before UTF-16: its mark begins with the mark of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A quote opens a quoted value only at the start of the value.
QUOTED = re.compile(rb'"(?<![^,\n\r]")[^"]*+(?:""[^"]*+)*+("?)')
BESIDE_A_QUOTE = np.isin(np.arange(256), list(b',\n\r"\0'))  # NUL stands for the end of the file

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file or a query.

    rows: the rows that can be read.
    lines: the line where each row begins. In Parquet or a query, the number of the row.
    broken: rejects whose number of values differs from the first line. They are not in `rows`.
    share: the part of the file that has been read (0 to 1). None if the size of the file is unknown.
    """

    rows: pa.Table
    lines: Sequence[int] | Ints
    broken: tuple[Reject, ...] = ()
    share: float | None = None


@dataclass(frozen=True, slots=True)
class RowsFile:
    """An open file of rows.

    names: the columns of the file.
    chunks: returns the rows of the given columns. Can be called once.
    sha256: returns the SHA-256 of the file's bytes in hex, once all rows have been read.
    """

    names: list[str]
    chunks: Callable[[list[str]], Iterator[Chunk]]
    sha256: Callable[[], str]


def numbered(tables: Iterable[pa.Table]) -> Iterator[Chunk]:
    """Yield `tables` as chunks with rows numbered from 1."""
    count = 0
    for rows in tables:
        yield Chunk(rows, range(count + 1, count + 1 + rows.num_rows))
        count += rows.num_rows


@contextmanager
def readable(path: Path, *, encoding: str | None = None) -> Iterator[RowsFile]:
    """Open the file at `path`, or standard input if `path` is `-`. Read errors name the file.

    The encoding of CSV is `encoding`, else the one of its byte order mark, else UTF-8.
    Raises: NotFound, DataRefused.
    """
    name = "standard input" if path == STDIN else path.name
    if path != STDIN and not path.is_file():
        raise NotFound(what=f"file {path}")
    if path != STDIN and not path.name.lower().endswith(ENDINGS):
        raise DataRefused(f"{name}: expected a file that ends in {', '.join(ENDINGS)}")
    try:
        if path.suffix.lower() == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                yield _parquet(path, file)
        else:
            raw = nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb")
            with raw as opened:
                yield _csv(_Raw(opened, path), name, encoding=encoding)
    except UnicodeDecodeError as error:
        hint = "name the right one with --encoding, such as latin-1 or cp1252"
        raise DataRefused(f"{name}: is not {error.encoding}: {hint}") from None
    except (pa.ArrowException, csv.Error, EOFError, OSError, zlib.error) as error:
        raise DataRefused(f"{name}: can't be read as a table: {' '.join(str(error).split())[:200]}") from None


class _Raw(io.RawIOBase):
    """The bytes of a file or of standard input. Hashes the bytes as they are read."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._size = path.stat().st_size if path != STDIN else None
        self._sha256, self._bytes_read = hashlib.sha256(), 0
        self.packed = path.suffix.lower() == ".gz"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._sha256.update(content)
        self._bytes_read += len(content)
        return content

    @property
    def share(self) -> float | None:
        return self._bytes_read / self._size if self._size else None

    def sha256(self) -> str:
        return self._sha256.hexdigest()


def _parquet(path: Path, file: pyarrow.parquet.ParquetFile) -> RowsFile:
    def chunks(columns: list[str]) -> Iterator[Chunk]:
        count = 0
        for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
            lines = range(count + 1, count + 1 + batch.num_rows)
            count += batch.num_rows
            yield Chunk(pa.Table.from_batches([batch]), lines, share=count / file.metadata.num_rows)

    def sha256() -> str:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    return RowsFile(list(file.schema_arrow.names), chunks, sha256)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Whole rows of a CSV file.

    content: the rows as UTF-8.
    starts: the offset of each row in `content`.
    lines: the line of the file on which each row begins.
    """

    content: bytes
    starts: Ints
    lines: Ints


def _csv(raw: _Raw, name: str, *, encoding: str | None) -> RowsFile:
    read = gzip.GzipFile(fileobj=raw).read if raw.packed else raw.read
    pieces = _pieces(_utf8(read, encoding), name=name)
    first = next(pieces, None)
    if first is None:
        raise DataRefused(f"{name}: is empty: expected a first line that names the columns")
    second = int(first.starts[1]) if len(first.starts) > 1 else len(first.content)
    names = next(csv.reader(io.StringIO(first.content[first.starts[0] : second].decode(), newline="")))
    places: dict[str, int] = {}
    for position, column in enumerate(names, start=1):
        if places.setdefault(column, position) != position:
            # The message has no names. In a file without a header they would be values.
            raise DataRefused(f"{name}: its first line names a column twice: columns {places[column]} and {position}")

    def chunks(columns: list[str]) -> Iterator[Chunk]:
        tail = _Piece(first.content[second:], first.starts[1:] - second, first.lines[1:])
        for piece in itertools.chain([tail], pieces):
            if len(piece.starts):
                yield _parse(piece, names=names, columns=columns, share=raw.share, source=name)

    return RowsFile(names, chunks, raw.sha256)


def _utf8(read: Callable[[int], bytes], encoding: str | None) -> Iterator[bytes]:
    """Yield the content of a text file as UTF-8, without a byte order mark."""
    content = read(CHUNK_BYTES)
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise DataRefused(f"there is no encoding {encoding!r}: try utf-8, utf-16, latin-1 or cp1252") from None
    bom_encoding = next((name for mark, name in BOMS if content.startswith(mark)), "utf-8")
    codec = codecs.lookup(encoding or bom_encoding).name
    if codec in {"utf-8", "utf-8-sig"}:
        content = content.removeprefix(codecs.BOM_UTF8)
        while content:
            yield content
            content = read(CHUNK_BYTES)
        return
    decoder = codecs.getincrementaldecoder(codec)()
    while content:
        yield decoder.decode(content).encode()
        content = read(CHUNK_BYTES)
    yield decoder.decode(b"", final=True).encode()


def _pieces(blocks: Iterable[bytes], *, name: str) -> Iterator[_Piece]:
    """Yield the content of a CSV file, cut between rows."""
    rest, line = b"", 1
    for block in itertools.chain(blocks, [None]):
        content = rest + (block or b"")
        ends, inside, still_open = _line_ends(content, final=block is None)
        row_ends = ends[~inside]
        if block is None:
            if still_open:
                raise DataRefused(f"{name}: the row in line {line} opens a quote that is never closed: is it cut off?")
            cut = len(content)
        else:
            cut = int(row_ends[-1]) + 1 if len(row_ends) else 0
        if cut:
            starts = _row_starts(content, row_ends, cut)
            if len(starts):
                yield _Piece(content[:cut], starts, line + np.searchsorted(ends, starts))
            line += int(np.searchsorted(ends, cut))
        rest = content[cut:]
        if len(rest) > LONGEST_ROW:
            raise DataRefused(f"{name}: the row in line {line} is longer than 16 MB: is a quote never closed?")


def _line_ends(content: bytes, *, final: bool) -> tuple[Ints, "np.ndarray[Any, np.dtype[np.bool_]]", bool]:
    """Return the ends of lines, a mask of the ends inside quoted values, and whether a quote is open at the end."""
    around = np.frombuffer(b"\n" + content + (b"\0" if final else b"\n"), np.uint8)
    text, after = around[1:-1], around[2:]
    ends = np.flatnonzero(text == ord("\n"))
    if content.count(b"\r") != content.count(b"\r\n"):  # a lone carriage return ends a line too
        ends = np.flatnonzero((text == ord("\n")) | ((text == ord("\r")) & (after != ord("\n"))))
    quotes = np.flatnonzero(text == ord('"'))
    if BESIDE_A_QUOTE[around[quotes[0::2]]].all() and BESIDE_A_QUOTE[after[quotes[1::2]]].all():
        # Quotes open and close in turn. Every quote inside a value is doubled.
        return ends, np.searchsorted(quotes, ends) % 2 == 1, len(quotes) % 2 == 1
    values = list(QUOTED.finditer(content))
    opened, closed = np.array([value.span() for value in values] or [(0, 0)]).T
    last = np.searchsorted(opened, ends) - 1
    return ends, (last >= 0) & (ends < closed[last]), bool(values) and not values[-1][1]


def _row_starts(content: bytes, row_ends: Ints, cut: int) -> Ints:
    """The offsets at which the rows before `cut` begin. Empty lines are not rows."""
    starts = np.concatenate([[0], row_ends + 1])
    ends = np.append(row_ends, cut)
    text = np.frombuffer(content, np.uint8)
    length = ends - starts
    only_return = (length == 1) & (text[np.minimum(starts, len(text) - 1)] == ord("\r"))
    row_starts: Ints = starts[(length > 0) & ~only_return & (starts < cut)]
    return row_starts


def _parse(piece: _Piece, *, names: list[str], columns: list[str], share: float | None, source: str) -> Chunk:
    broken: dict[int, Reject] = {}

    def reject(row: pyarrow.csv.InvalidRow) -> str:
        # The reason has no text of the row, which may hold private values.
        index = row.number - 1
        reason = f"its first line has {row.expected_columns}"
        broken[index] = (int(piece.lines[index]), "number of values", str(row.actual_columns), reason)
        return "skip"

    try:
        rows = pyarrow.csv.read_csv(
            pa.BufferReader(piece.content),
            # PyArrow numbers the rows only with one block and one thread.
            read_options=pyarrow.csv.ReadOptions(
                column_names=names, block_size=len(piece.content) + 1, use_threads=False
            ),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=reject),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid:
        piece.content.decode()  # raises the clearer error if the encoding is wrong
        raise
    lines = np.delete(piece.lines, list(broken))
    if len(lines) != rows.num_rows:
        raise DataRefused(f"{source}: its lines from {piece.lines[0]} on can't be told apart")
    return Chunk(rows, lines, tuple(broken.values()), share)
