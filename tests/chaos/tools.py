"""A program that only `make chaos` needs: where it is on this machine, or in a Debian package that is unpacked.

Unpacked, not installed: that needs no root, and Debian's nginx would start a web server of its own.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.world import Skip
from utils.version import ROOT

UNPACKED = ROOT / ".venv" / "debian"


def nginx() -> Path:
    """Raises: Skip where it is not to be had."""
    if found := shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"):
        return Path(found)
    return _file_of("nginx", "usr/sbin/nginx")


def _file_of(package: str, inside: str) -> Path:
    folder = UNPACKED / package
    if not (found := next(_inside(folder, inside), None)):
        _unpack(package, folder)
        found = next(_inside(folder, inside), None)
    if not found:
        raise Skip(f"the package {package} has no {inside}")
    return found


def _inside(folder: Path, pattern: str) -> Iterator[Path]:
    return folder.glob(pattern) if folder.exists() else iter(())


def _unpack(package: str, folder: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Skip(f"{package} is not installed, and there is no apt")
    with tempfile.TemporaryDirectory() as aside:
        try:
            command = ["apt-get", "-q", "download", package]
            subprocess.run(command, cwd=aside, check=True, capture_output=True, text=True)
            (archive,) = Path(aside).glob("*.deb")
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True, capture_output=True)
        except (subprocess.SubprocessError, ValueError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise Skip(f"apt could not bring {package}: {said[-1]}; try `apt-get install {package}`") from None
