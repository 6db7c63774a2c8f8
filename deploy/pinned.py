"""`pinned.py LOCK <PACKAGES` prints the lock's entries, with their hashes, for the packages on standard input.

A line of standard input is `name==version`. The script fails if the lock has no entry for exactly this version.
"""

import re
import sys
from pathlib import Path

ENTRY = re.compile(r"^([A-Za-z0-9._-]+==[^\s\\]+)[^\\\n]*(?:\\\n[^\\\n]*)*", re.MULTILINE)


def main() -> None:
    locked = {match[1]: match[0] for match in ENTRY.finditer(Path(sys.argv[1]).read_text(encoding="utf-8"))}
    wanted = [line.split(";")[0].split()[0] for line in sys.stdin if "==" in line]
    if missing := [name for name in wanted if name not in locked]:
        raise SystemExit(f"not in {sys.argv[1]}: {', '.join(missing)}")
    sys.stdout.write("\n".join(locked[name] for name in wanted) + "\n")


if __name__ == "__main__":
    main()
