"""The schema of one model's store tables. `pipelines.spec` derives it from the model file."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Kind = Literal["number", "category", "text"]

CATEGORY_LENGTH = 128  # characters; MariaDB counts four bytes each against a row's 65,535, so 127 such columns fit
TEXT_LENGTH = 4000  # characters
ENTITY_LENGTH = 64  # characters
RESERVED_COLUMNS = frozenset({"entity_id", "event_time", "available_at", "batch_id"})
TIMELESS = datetime(1970, 1, 1)  # the event time of all rows of data without time


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class StoreSchema:
    """The schema of one model's store tables.

    timed: False for data without time. Every row then has the event time `TIMELESS`.
    max_age: the greatest age of a feature row for a label. None: no limit.
    entity: the name of the entity. The store records it, so that rows of another entity can't be mixed in later.
    """

    model: str
    features: tuple[Column, ...]
    label: Column
    timed: bool
    max_age: timedelta | None
    entity: str = ""

    @property
    def features_table(self) -> str:
        return f"{self.model}_features"

    @property
    def labels_table(self) -> str:
        return f"{self.model}_labels"

    @property
    def latest_table(self) -> str:
        return f"{self.model}_latest"
