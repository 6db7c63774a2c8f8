"""requirements.lock against pyproject.toml: what a forgotten `make lock` leaves behind, and what Renovate reads."""

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from utils.version import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS: dict[str, list[str]] = PYPROJECT["dependency-groups"]
ASKED = [*PYPROJECT["project"]["dependencies"], *(asked for group in GROUPS.values() for asked in group)]
PINNED = {canonicalize_name(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==([^\s\\;]+)", LOCK)}


@pytest.mark.parametrize("asked", ASKED)
def test_the_lock_has_every_package_that_is_asked_for_in_a_version_that_fits(asked: str) -> None:
    wanted = Requirement(asked)
    assert wanted.specifier.contains(PINNED[canonicalize_name(wanted.name)], prereleases=True)


def test_the_lock_begins_with_the_command_that_makes_it_from_all_groups() -> None:
    """Renovate runs this line. It takes no other options, and values behind `=` only."""
    groups = " ".join(f"--group={group}" for group in GROUPS)
    command = f"uv pip compile --generate-hashes {groups} --output-file=requirements.lock pyproject.toml"
    assert LOCK.splitlines()[1] == f"#    {command}"
    script = (ROOT / "deploy" / "lock.sh").read_text()
    assert re.search(r'(?m)^groups="(.+)"$', script)[1] == groups  # type: ignore[index]


def test_entries_are_taken_from_the_lock_with_their_hashes() -> None:
    """As images take those that they need."""
    asked = f"alembic=={PINNED[canonicalize_name('alembic')]}\n"
    pinned = [sys.executable, "deploy/pinned.py", "requirements.lock"]
    found = subprocess.run(pinned, input=asked, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    assert found.startswith(f"{asked.strip()} \\\n    --hash=sha256:")
    assert "#" not in found
