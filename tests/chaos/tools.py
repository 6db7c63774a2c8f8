"""Find nginx, which only `make chaos` needs: on this machine, or in an unpacked Debian package.

The package is not installed, only unpacked. This needs no root, and an installed nginx would start a web server.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.world import FaultSkipped
from utils.version import ROOT

UNPACKED = ROOT / ".venv" / "debian"


def find_nginx() -> Path:
    """Return the path of nginx. Raises: FaultSkipped if this machine has no nginx and can't download the package."""
    if path := shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"):
        return Path(path)
    return _find_in_package("nginx", "usr/sbin/nginx")


def _find_in_package(package: str, pattern: str) -> Path:
    """Return the file `pattern` of an unpacked package. Downloads and unpacks the package if necessary."""
    folder = UNPACKED / package
    if not (file := next(_find_files(folder, pattern), None)):
        _download_and_unpack(package, folder)
        file = next(_find_files(folder, pattern), None)
    if not file:
        raise FaultSkipped(f"the package {package} has no {pattern}")
    return file


def _find_files(folder: Path, pattern: str) -> Iterator[Path]:
    return folder.glob(pattern) if folder.exists() else iter(())


def _download_and_unpack(package: str, folder: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FaultSkipped(f"{package} is not installed, and there is no apt")
    with tempfile.TemporaryDirectory() as download_folder:
        try:
            command = ["apt-get", "-q", "download", package]
            subprocess.run(command, cwd=download_folder, check=True, capture_output=True, text=True)
            (archive,) = Path(download_folder).glob("*.deb")
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True, capture_output=True)
        except (subprocess.SubprocessError, ValueError) as error:
            error_lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise FaultSkipped(
                f"apt could not download {package}: {error_lines[-1]}; try `apt-get install {package}`"
            ) from None
