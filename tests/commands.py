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

EVERGREEN = str(Path(sys.executable).with_name("evergreen"))  # for tests that kill the process or measure its memory


def evergreen(
    *arguments: object, environment: Mapping[str, str], cwd: Path | None = None, stdin: str = ""
) -> CompletedProcess[str]:
    """Run the command and return its output and exit code.

    It runs like the installed command: `main` with its own arguments, a complete `environment`, a folder and a standard
    input. No stream is a terminal. It runs in the test's process, because the imports take longer than most commands.
    """
    argv = [EVERGREEN, *map(str, arguments)]
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", argv),
        patch.dict(os.environ, environment, clear=True),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
        redirect_stdout(output),
        redirect_stderr(errors),
        chdir(cwd) if cwd else nullcontext(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return CompletedProcess(argv, code, output.getvalue(), errors.getvalue())
