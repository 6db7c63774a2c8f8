"""Find nginx, which only `make chaos` needs: on this machine, or in an unpacked Debian package.

The package is unpacked, not installed. Unpacking needs no root, and Debian's nginx would start its own web server.
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
    """The path of nginx. Raises: Skip if there is no nginx and no way to get it."""
    if path := shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"):
        return Path(path)
    return _file_of("nginx", "usr/sbin/nginx")


def _file_of(package: str, pattern: str) -> Path:
    folder = UNPACKED / package
    if not (file := next(_inside(folder, pattern), None)):
        _unpack(package, folder)
        file = next(_inside(folder, pattern), None)
    if not file:
        raise Skip(f"the package {package} has no {pattern}")
    return file


def _inside(folder: Path, pattern: str) -> Iterator[Path]:
    return folder.glob(pattern) if folder.exists() else iter(())


def _unpack(package: str, folder: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Skip(f"{package} is not installed, and there is no apt")
    with tempfile.TemporaryDirectory() as download:
        try:
            command = ["apt-get", "-q", "download", package]
            subprocess.run(command, cwd=download, check=True, capture_output=True, text=True)
            (archive,) = Path(download).glob("*.deb")
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True, capture_output=True)
        except (subprocess.SubprocessError, ValueError) as error:
            lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise Skip(f"apt could not bring {package}: {lines[-1]}; try `apt-get install {package}`") from None
