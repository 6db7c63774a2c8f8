"""The `evergreen` command as users type it, run in the test's own process."""

import io
import os
import sys
from collections.abc import Mapping
from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from cli.main import main

EVERGREEN = str(Path(sys.executable).with_name("evergreen"))  # for tests that need a process: to kill it, or its memory


def evergreen(
    *arguments: object, environment: Mapping[str, str], cwd: Path | None = None, stdin: str = ""
) -> CompletedProcess[str]:
    """What the command prints and its exit code.

    It takes what the installed command takes: `main`, its own arguments, its own `environment` (all of it), folder and
    standard input, none of them a terminal. Only the process is the test's, because importing everything takes longer
    than most commands.
    """
    argv = [EVERGREEN, *map(str, arguments)]
    printed, told = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", argv),
        patch.dict(os.environ, environment, clear=True),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
        redirect_stdout(printed),
        redirect_stderr(told),
        chdir(cwd) if cwd else nullcontext(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return CompletedProcess(argv, code, printed.getvalue(), told.getvalue())
