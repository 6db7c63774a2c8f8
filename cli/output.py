"""Output of the commands: tables for people, one JSON document for machines, one line for an error."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]  # an option of most commands
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def as_json(content: object) -> None:
    """Print `content` as one JSON document on standard output. Times are UTC, in ISO 8601 with a Z."""
    sys.stdout.write(json.dumps(content, default=_json_value, ensure_ascii=False) + "\n")


def as_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Print `rows` as a table. All rows have the same keys, which become the column headers."""
    table = Table(title=title or None, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else _cell(value) for value in row.values()))
    out.print(table)


def _cell(value: object) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat() + "Z"
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID | Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")
