"""Durations as model files write them: `90d`, `6h`, `10m`, `30s`."""

import re
from datetime import timedelta

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """Parse `text` into a timedelta.

    Raises: ValueError.
    """
    if not (match := re.fullmatch(r"(\d+)([smhd])", text.strip())):
        raise ValueError(f"expected a number and a unit like 90d, 6h, 10m or 30s, got {text!r}")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def parse_duration(value: object) -> object:
    """Parse `90d`, `6h`, `10m` or `30s` into a timedelta. Pydantic checks values of other types.

    Raises: ValueError.
    """
    if isinstance(value, str):
        return duration(value)
    if isinstance(value, int | float):
        raise ValueError(f"expected a number and a unit like 90d, 6h, 10m or 30s, got {value!r}")
    return value


def show_duration(length: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads back."""
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % size == 0 and seconds:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
