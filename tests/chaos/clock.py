"""A wall clock that can be set for some processes only. Under libfaketime, processes with threads hang."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """The clock of all processes that are started with `environment`. Its files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "clock.so"
        self.set(0)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        """Shift the clock by `seconds` from the real time. It takes effect at once: the file is mapped into memory."""
        with self._file.open("r+b" if self._file.exists() else "xb") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))
