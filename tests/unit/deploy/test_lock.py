"""requirements.lock matches pyproject.toml and begins with the command that Renovate runs."""

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
REQUIREMENTS = [*PYPROJECT["project"]["dependencies"], *(line for group in GROUPS.values() for line in group)]
PINNED = {canonicalize_name(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==([^\s\\;]+)", LOCK)}


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_the_lock_has_every_required_package_in_a_version_that_fits(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)], prereleases=True)


def test_the_lock_begins_with_the_command_that_creates_it_from_all_groups() -> None:
    """Renovate runs this command. Renovate accepts only these options, and their values only after `=`."""
    groups = " ".join(f"--group={group}" for group in GROUPS)
    command = f"uv pip compile --generate-hashes {groups} --output-file=requirements.lock pyproject.toml"
    assert LOCK.splitlines()[1] == f"#    {command}"
    script = (ROOT / "deploy" / "lock.sh").read_text()
    assert re.search(r'(?m)^groups="(.+)"$', script)[1] == groups  # type: ignore[index]


def test_pinned_py_prints_the_requested_entries_with_their_hashes() -> None:
    """The images use pinned.py to select their packages."""
    requirement = f"alembic=={PINNED[canonicalize_name('alembic')]}\n"
    command = [sys.executable, "deploy/pinned.py", "requirements.lock"]
    output = subprocess.run(command, input=requirement, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    assert output.startswith(f"{requirement.strip()} \\\n    --hash=sha256:")
    assert "#" not in output
