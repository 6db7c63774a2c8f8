"""CSV files in chunks: the same rows and lines for every chunk size, and errors for files that can't be read."""

import csv
import gzip
import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.loading import files
from pipelines.loading.files import readable
from utils.errors import DataRefused, NotFound

HEADER = "a,b\n"


def read(path: Path, *, encoding: str | None = None) -> tuple[list[tuple[object, ...]], list[int], list[int]]:
    """The values of the rows, the lines on which the rows begin, and the refused lines."""
    rows, lines, broken = [], [], []
    with readable(path, encoding=encoding) as file:
        for chunk in file.chunks(["a", "b"]):
            rows += [tuple(row.values()) for row in chunk.rows.to_pylist()]
            lines += [int(line) for line in chunk.lines]
            broken += [reject[0] for reject in chunk.broken]
    return rows, lines, broken


def reference(text: str) -> tuple[list[tuple[str | None, ...]], list[int], list[int]]:
    """The result of `read` by Python's own reader, row by row."""
    rows, lines, broken, start = [], [], [], 1
    reader = csv.reader(io.StringIO(text, newline=""))
    for values in reader:
        if len(values) == 2:
            rows.append(tuple(value or None for value in values))
            lines.append(start)
        elif values:
            broken.append(start)
        start = reader.line_num + 1
    return rows[1:], lines[1:], broken


@given(
    text=st.text(alphabet='xé,"\n\r ', max_size=60),
    quoted=st.lists(st.tuples(st.text('x,"\n\r', max_size=8), st.text('y,"\n', max_size=8)), max_size=6),
    size=st.integers(1, 40),
)
@example(text='x,6" nail\n"a\nb",y\n', quoted=[], size=7)
@example(text='x,y\r\n\r\n\nx\r\n"x""\r\n",y\r\n', quoted=[], size=5)
@example(text="x,y\rx,y\r", quoted=[], size=3)
def test_rows_and_lines_equal_those_of_pythons_reader_for_every_chunk_size(
    text: str, quoted: list[tuple[str, str]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows(quoted)
    content = HEADER + buffer.getvalue() + text
    path = tmp_path_factory.getbasetemp() / "generated.csv"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", size)
        # Python's reader closes an open quote at the end of a file. Then an added row of four becomes part of a value.
        if list(csv.reader(io.StringIO(content + "\n,,,", newline="")))[-1] == ["", "", "", ""]:
            assert read(path) == reference(content)
        else:
            with pytest.raises(DataRefused, match="never closed"):
                read(path)


def write(folder: Path, content: bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-32", None),
        ("latin-1", "latin-1"),
        ("cp1252", "cp1252"),
        ("utf-16-le", "utf-16-le"),
        ("utf-8-sig", "utf-8"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, option: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)  # also cuts inside a character
    path = write(tmp_path, "a,b\nZürich,é\nx,naïve\n".encode(encoding))
    assert read(path, encoding=option) == ([("Zürich", "é"), ("x", "naïve")], [2, 3], [])


def test_a_file_in_another_encoding_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\nx,y\nx,Zürich\n".encode("latin-1"))
    with pytest.raises(DataRefused, match=r"rows\.csv: is not utf-8: name the right one with --encoding"):
        read(path)
    with pytest.raises(DataRefused, match="there is no encoding 'klingon'"):
        read(path, encoding="klingon")
    with pytest.raises(DataRefused, match="there is no encoding 'zip'"):
        read(path, encoding="zip")


def test_lines_that_end_with_carriage_return_and_line_feed(tmp_path: Path) -> None:
    assert read(write(tmp_path, b'a,b\r\n1,"x\r\ny"\r\n2,z\r\n')) == ([("1", "x\r\ny"), ("2", "z")], [2, 4], [])


def test_quoted_line_feeds_do_not_shift_the_lines_of_refused_rows(tmp_path: Path) -> None:
    rows, lines, broken = read(write(tmp_path, b'a,b\n1,"x\n\n\ny"\nonly one\n\n2,z\n'))
    assert (rows, lines, broken) == ([("1", "x\n\n\ny"), ("2", "z")], [2, 8], [6])


def test_a_refused_row_is_reported_by_its_line_and_number_of_values_only(tmp_path: Path) -> None:
    with readable(write(tmp_path, b"a,b\n1,2,000-12-3456\n")) as file:
        (chunk,) = file.chunks(["a", "b"])
    assert chunk.broken == ((2, "number of values", "3", "its first line has 2"),)


def test_a_file_that_is_cut_off_in_a_quoted_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="the row in line 3 opens a quote that is never closed"):
        read(write(tmp_path, b'a,b\n1,2\n3,"cut o'))


def test_a_row_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_ROW", 1000)
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    with pytest.raises(DataRefused, match="the row in line 2 is longer than"):
        read(write(tmp_path, b'a,b\n1,"' + b"x\n" * 5000))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"\n\n", "is empty"), (b"\xef\xbb\xbf", "is empty")]
)
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataRefused, match=reason):
        read(write(tmp_path, content))


def test_a_repeated_column_name_is_reported_by_its_places(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="names a column twice: columns 1 and 3") as error:
        read(write(tmp_path, b"000-12-3456,b,000-12-3456\n"))
    assert "000" not in str(error.value)


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path, b"a,b\n")) == read(write(tmp_path, b"a,b")) == ([], [], [])


def test_other_kinds_of_files_are_refused_by_their_ending(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match=r"rows\.xlsx: expected a file that ends in \.csv, \.csv\.gz, \.parquet"):
        read(write(tmp_path, b"PK", "rows.xlsx"))
    with pytest.raises(NotFound):
        read(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "ROWS.CSV"])
def test_hash_and_share_refer_to_the_file_on_disk(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 50_000)
    content = b"a,b\n" + b"".join(b"%d,%d\n" % (i * i, i**5) for i in range(20_000))
    path = write(tmp_path, gzip.compress(content) if name.endswith(".gz") else content, name)
    with readable(path) as file:
        shares = [chunk.share for chunk in file.chunks(["a"]) if chunk.share is not None]
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[0] < 1 == shares[-1]
