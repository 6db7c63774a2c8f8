"""Reading files of rows in chunks of bounded size: CSV (plain, gzip or standard input) and Parquet."""

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
BOMS = (  # the longer one first: a mark of UTF-32 begins like one of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
QUOTED = re.compile(rb'"(?<![^,\n\r]")[^"]*+(?:""[^"]*+)*+("?)')  # only a quote that begins a value opens one
BESIDE_A_QUOTE = np.isin(np.arange(256), list(b',\n\r"\0'))  # the last one stands for the end of a file

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file. `lines` says where each of them begins; in Parquet or a query it is the row's number.

    `broken`: rows that have another number of values than the first line, and are not among `rows`.
    `share`: how much of the file has been read (0 to 1), None where its size is not known.
    """

    rows: pa.Table
    lines: Sequence[int] | Ints
    broken: tuple[Reject, ...] = ()
    share: float | None = None


@dataclass(frozen=True, slots=True)
class RowsFile:
    """An open file: its columns, its rows (to be read once), and after that the SHA-256 of its bytes in hex."""

    names: list[str]
    chunks: Callable[[list[str]], Iterator[Chunk]]
    sha256: Callable[[], str]


def numbered(tables: Iterable[pa.Table]) -> Iterator[Chunk]:
    """`tables` as chunks, their rows numbered from 1."""
    done = 0
    for rows in tables:
        yield Chunk(rows, range(done + 1, done + 1 + rows.num_rows))
        done += rows.num_rows


@contextmanager
def readable(path: Path, *, encoding: str | None = None) -> Iterator[RowsFile]:
    """The file at `path`, or standard input where it is `-`; errors of reading it say which file it was.

    CSV is UTF-8, or what its byte order mark says, unless `encoding` names another one.
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
    """The bytes of a file or of standard input, hashed as they are read."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._size = path.stat().st_size if path != STDIN else None
        self._sha256, self._done = hashlib.sha256(), 0
        self.packed = path.suffix.lower() == ".gz"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        self._sha256.update(found)
        self._done += len(found)
        return found

    @property
    def share(self) -> float | None:
        return self._done / self._size if self._size else None

    def sha256(self) -> str:
        return self._sha256.hexdigest()


def _parquet(path: Path, file: pyarrow.parquet.ParquetFile) -> RowsFile:
    def chunks(wanted: list[str]) -> Iterator[Chunk]:
        done = 0
        for batch in file.iter_batches(CHUNK_ROWS, columns=wanted):
            lines = range(done + 1, done + 1 + batch.num_rows)
            done += batch.num_rows
            yield Chunk(pa.Table.from_batches([batch]), lines, share=done / file.metadata.num_rows)

    def sha256() -> str:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    return RowsFile(list(file.schema_arrow.names), chunks, sha256)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Whole rows of a CSV file as UTF-8: where each begins in `content`, and on which line of the file."""

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
    seen: dict[str, int] = {}
    for place, each in enumerate(names, start=1):
        if seen.setdefault(each, place) != place:  # told by its place: where that line is missing it is a value
            raise DataRefused(f"{name}: its first line names a column twice: columns {seen[each]} and {place}")

    def chunks(wanted: list[str]) -> Iterator[Chunk]:
        rest = _Piece(first.content[second:], first.starts[1:] - second, first.lines[1:])
        for piece in itertools.chain([rest], pieces):
            if len(piece.starts):
                yield _parsed(piece, names=names, wanted=wanted, share=raw.share, source=name)

    return RowsFile(names, chunks, raw.sha256)


def _utf8(read: Callable[[int], bytes], encoding: str | None) -> Iterator[bytes]:
    """The content of a text file as UTF-8, without a byte order mark."""
    content = read(CHUNK_BYTES)
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise DataRefused(f"there is no encoding {encoding!r}: try utf-8, utf-16, latin-1 or cp1252") from None
    marked = next((name for mark, name in BOMS if content.startswith(mark)), "utf-8")
    codec = codecs.lookup(encoding or marked).name
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
    """The content of a CSV file, cut between rows."""
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
    """Where lines end, which of these ends stand inside a quoted value, and whether a quote is open at the end."""
    around = np.frombuffer(b"\n" + content + (b"\0" if final else b"\n"), np.uint8)
    text, after = around[1:-1], around[2:]
    ends = np.flatnonzero(text == ord("\n"))
    if content.count(b"\r") != content.count(b"\r\n"):  # a lone carriage return ends a line too
        ends = np.flatnonzero((text == ord("\n")) | ((text == ord("\r")) & (after != ord("\n"))))
    quotes = np.flatnonzero(text == ord('"'))
    if BESIDE_A_QUOTE[around[quotes[0::2]]].all() and BESIDE_A_QUOTE[after[quotes[1::2]]].all():
        # Every other quote opens or closes: none stands in the middle of a value without being doubled.
        return ends, np.searchsorted(quotes, ends) % 2 == 1, len(quotes) % 2 == 1
    values = list(QUOTED.finditer(content))
    opened, closed = np.array([value.span() for value in values] or [(0, 0)]).T
    last = np.searchsorted(opened, ends) - 1
    return ends, (last >= 0) & (ends < closed[last]), bool(values) and not values[-1][1]


def _row_starts(content: bytes, row_ends: Ints, cut: int) -> Ints:
    """Where the rows before `cut` begin; an empty line is none."""
    starts = np.concatenate([[0], row_ends + 1])
    ends = np.append(row_ends, cut)
    text = np.frombuffer(content, np.uint8)
    length = ends - starts
    only_return = (length == 1) & (text[np.minimum(starts, len(text) - 1)] == ord("\r"))
    kept: Ints = starts[(length > 0) & ~only_return & (starts < cut)]
    return kept


def _parsed(piece: _Piece, *, names: list[str], wanted: list[str], share: float | None, source: str) -> Chunk:
    broken: dict[int, Reject] = {}

    def refuse(row: pyarrow.csv.InvalidRow) -> str:  # without the row's text: it may hold private values
        index = row.number - 1
        reason = f"its first line has {row.expected_columns}"
        broken[index] = (int(piece.lines[index]), "number of values", str(row.actual_columns), reason)
        return "skip"

    try:
        rows = pyarrow.csv.read_csv(
            pa.BufferReader(piece.content),
            # One block, one thread: otherwise the rows have no numbers.
            read_options=pyarrow.csv.ReadOptions(
                column_names=names, block_size=len(piece.content) + 1, use_threads=False
            ),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid:
        piece.content.decode()  # where this is what is wrong, it says so
        raise
    lines = np.delete(piece.lines, list(broken))
    if len(lines) != rows.num_rows:
        raise DataRefused(f"{source}: its lines from {piece.lines[0]} on can't be told apart")
    return Chunk(rows, lines, tuple(broken.values()), share)
