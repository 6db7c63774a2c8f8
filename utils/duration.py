"""Durations as model files write them: `90d`, `6h`, `10m`, `30s`."""

import re
from datetime import timedelta

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """The length that `text` spells.

    Raises: ValueError.
    """
    if not (match := re.fullmatch(r"(\d+)([smhd])", text.strip())):
        raise ValueError(f"expected a number and a unit like 90d, 6h, 10m or 30s, got {text!r}")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def parse_duration(given: object) -> object:
    """`90d`, `6h`, `10m`, `30s` as a timedelta; anything else is left for pydantic to refuse or take."""
    if isinstance(given, str):
        return duration(given)
    if isinstance(given, int | float):
        raise ValueError(f"expected a number and a unit like 90d, 6h, 10m or 30s, got {given!r}")
    return given


def show_duration(length: timedelta) -> str:
    """The shortest spelling that `parse_duration` reads back."""
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % size == 0 and seconds:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
