"""The sources of the running code's name, in order of precedence."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import version

ARCHIVED = "f" * 40


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small source tree without git, instead of this repository."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "some.py").write_text("one = 1\n")
    monkeypatch.setattr(version, "ROOT", tmp_path)
    monkeypatch.delenv("EVERGREEN_COMMIT", raising=False)
    version.code_commit.cache_clear()
    yield tmp_path
    version.code_commit.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", f"safe.directory={folder}"]
    process = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return process.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return git(folder, "rev-parse", "HEAD")


def test_the_commit_of_an_image_takes_precedence(checkout, monkeypatch):
    commit(checkout)
    monkeypatch.setenv("EVERGREEN_COMMIT", "abc")
    assert version.code_commit() == "abc"


def test_a_checkout_is_named_by_its_commit(checkout):
    assert version.code_commit() != (head := commit(checkout))
    version.code_commit.cache_clear()
    assert version.code_commit() == head


def test_changed_files_make_a_checkout_dirty(checkout):
    head = commit(checkout)
    (checkout / "utils" / "some.py").write_text("one = 2\n")
    assert version.code_commit() == f"{head}-dirty"


def test_a_repository_without_a_commit_falls_through(checkout):
    git(checkout, "init", "-q")
    assert version.code_commit().startswith("source-")


def test_an_archive_is_named_by_the_commit_that_git_wrote_into_it(checkout):
    (checkout / ".git_archival.txt").write_text(f"{ARCHIVED}\n")
    assert version.code_commit() == ARCHIVED


def test_an_unfilled_archive_file_is_ignored(checkout):
    (checkout / ".git_archival.txt").write_text("$Format:%H$\n")
    assert version.code_commit().startswith("source-")


def test_plain_files_are_named_by_their_content(checkout):
    before = version.code_commit()
    (checkout / "utils" / "some.py").write_text("one = 2\n")
    version.code_commit.cache_clear()
    assert before.startswith("source-")
    assert len(before) == len("source-") + 40
    assert version.code_commit() != before
