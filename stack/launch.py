"""Start one program: `launch.py FILE DIGEST` becomes the program that FILE describes, as JSON {"argv", "environment"}.

The supervisor's own configuration can't hold every value (a password with a quote and a blank before a semicolon), and
it would show them; FILE is readable by its owner only. DIGEST changes the supervisor's configuration, and so restarts
the program, when the definition in FILE changes. Only the standard library is used: this takes some milliseconds.
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    program = json.loads(Path(sys.argv[1]).read_bytes())
    os.execvpe(program["argv"][0], program["argv"], program["environment"])  # noqa: S606 - no shell is wanted
