"""Write many rows into one statement, five times faster than the driver and as safely.

The driver checks every character of every value. This module writes text as hexadecimal digits. Such text can't end
its literal, whatever its content and whatever the server's mode.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

from pymysql.err import ProgrammingError

LONGEST = 4_000_000  # characters of a statement; MariaDB accepts 16 MB by default
REPEATED = 64  # longest text, in characters, whose literal is cached, because short texts often repeat in a column

Value = str | int | float | datetime | None


def statements(before: str, rows: Sequence[Sequence[Value]], after: str) -> Iterator[str]:
    """Yield `before`, the rows as literals and `after` as one statement. Above `LONGEST` characters, yield several."""
    literals: dict[Value, str] = {None: "NULL"}
    parts: list[str] = []
    size = 0
    for row in rows:
        part = "(" + ",".join([literals.get(value) or _literal(value, literals) for value in row]) + ")"
        if parts and size + len(part) > LONGEST:
            yield f"{before}{','.join(parts)}{after}"
            parts, size = [], 0
        parts.append(part)
        size += len(part) + 1
    if parts:
        yield f"{before}{','.join(parts)}{after}"


def _literal(value: Value, literals: dict[Value, str]) -> str:
    """Return `value` as SQL.

    Raises: TypeError: the type is not in `Value`. ProgrammingError: NaN or infinity, like the driver.
    """
    if isinstance(value, str):
        literal = f"_utf8mb4 x'{value.encode().hex()}'"
        if len(value) <= REPEATED:
            literals[value] = literal
        return literal
    if isinstance(value, float):
        if value - value != 0:
            raise ProgrammingError("a number in a row is not finite")
        return float.__repr__(value)  # also of numpy's floats
    if isinstance(value, datetime):
        literal = literals[value] = f"'{value}'"
        return literal
    if type(value) is int:
        return repr(value)
    raise TypeError(f"a row holds a {type(value).__name__}")
