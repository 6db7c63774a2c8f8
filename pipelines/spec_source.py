"""The keys of a model file that say where rows come from and how files name things."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from pipelines.spec_types import Frozen
from utils.duration import duration

LAG = re.compile(r"\+?\d+[smhd]")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"expected the name of a time zone, like Europe/Zurich, got {name!r}") from None
    return name


class Source(Frozen):
    """Where rows come from and how files name things. Without `event_time` the data has no time.

    `time_of_day` is for files that keep date and time apart: the column with the hour (0 to 23) or the time (HH:MM).
    """

    event_time: str | None = None
    time_of_day: str | None = None  # the hour (0 to 23) or time (HH:MM), where `event_time` is a date without it
    time_zone: Annotated[str, AfterValidator(_zone)] | None = Field(
        None, description="Of times without an offset, an IANA name; empty: they are UTC."
    )
    available_at: str | None = Field(None, description="A column; or how long after event_time, like +2d.")
    map: Mapping[str, str] = Field(default_factory=dict, description="Column of the file: its name here.")
    query: str | None = Field(None, description="SQL run before each training; :since is the last time loaded.")
    connection: str | None = Field(None, description="Airflow connection to run it over; empty: the same MariaDB.")

    @property
    def lag(self) -> timedelta | None:
        """How long after its event time each row is known, where `available_at` says that."""
        given = self.available_at
        return duration(given.removeprefix("+")) if given and LAG.fullmatch(given) else None

    @property
    def available_column(self) -> str | None:
        """The column with times of availability, where the rows carry their own."""
        return None if self.lag is not None else self.available_at
