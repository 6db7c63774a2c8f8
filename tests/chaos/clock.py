"""A wall clock that can be set for some processes only.

libfaketime does the same, but processes with threads hang under it.
"""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """The clock of all processes that have the variables of `environment`. `folder` is for the files of the clock."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "clock", folder / "clock.so"
        self.set(0)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        """Set the clock to the real time plus `seconds`.

        Running processes see the change at once, because they have mapped the file into memory.
        """
        with self._file.open("r+b" if self._file.exists() else "xb") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))
