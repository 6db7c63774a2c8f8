"""The sections of a model file, each with its keys and their defaults."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from db.store.schema import CATEGORY_LENGTH
from pipelines.spec.values import Duration, Frozen, Margin, Period, Window
from utils.duration import duration

IDENTIFIER = r"^[a-z][a-z0-9_]{0,47}$"
LAG = re.compile(r"\+?\d+[smhd]")

Name = Annotated[str, Field(pattern=IDENTIFIER)]
Share = Annotated[float, Field(gt=0, lt=1)]
Severity = Literal["error", "warning"]


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


class Numeric(Frozen):
    type: Literal["numeric"]
    description: str = ""
    unit: str = ""
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Numeric":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Categorical(Frozen):
    """Open where `values` is empty: a category never seen in training is then answered with a warning."""

    type: Literal["categorical"]
    description: str = ""
    values: tuple[Annotated[str, Field(min_length=1, max_length=CATEGORY_LENGTH)], ...] = ()


class Text(Frozen):
    type: Literal["text"]
    description: str = ""


Feature = Annotated[Numeric | Categorical | Text, Field(discriminator="type")]


class Label(Frozen):
    column: Name
    classes: tuple[str, ...] = ()
    maturity: Duration = timedelta(0)


class Features(Frozen):
    max_age: Duration | None = None
    columns: Mapping[Name, Feature] = Field(min_length=1)
    private: tuple[str, ...] = ()


class TimeSplit(Frozen):
    by: Literal["time"]
    validation: Duration = timedelta(days=7)
    test: Duration = timedelta(days=7)


class EntitySplit(Frozen):
    by: Literal["entity"]
    validation: Share = 0.2
    test: Share = 0.2


class Space(Frozen):
    """Ranges of CatBoost's parameters, low and high ends included; the learning rate is drawn on a log scale."""

    LOG: ClassVar[frozenset[str]] = frozenset({"learning_rate"})  # drawn on a log scale

    depth: tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]] = (4, 8)
    learning_rate: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.03, 0.3)
    l2_leaf_reg: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 10.0)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Low and high end by parameter; whole numbers where only such are tried."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @model_validator(mode="after")
    def _ordered(self) -> "Space":
        for name, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"{name}: the first end, {low}, is above the second, {high}")
        return self


class Search(Frozen):
    trials: int = Field(20, ge=1, le=10_000)
    timeout: Duration = timedelta(minutes=10)
    metric: str = ""
    space: Space = Space()


class Training(Frozen):
    window: Window = Field(None, description="How far back to learn from; empty: all; auto: part of the search.")
    split: Annotated[TimeSplit | EntitySplit, Field(discriminator="by")]
    search: Search
    final_fit: bool = True


class ChampionGate(Frozen):
    metric: str = ""
    margin: Margin = 0.005
    confidence: float = Field(0.95, gt=0.5, lt=1)
    require: Literal["not_worse", "better"] = "not_worse"


class SliceGate(Frozen):
    columns: tuple[Name, ...]
    margin: Margin = 0.03


class Gates(Frozen):
    minimum: Mapping[str, float] = Field(default_factory=dict)
    champion: ChampionGate
    slices: SliceGate | None = None
    min_rows: int = Field(500, ge=1)
    approval: Literal["none", "human"] = "none"


class Validation(Frozen):
    """What becomes of a broken rule: an error stops the training, a warning stands in the report.

    A column that is missing or of another type, and a label that is missing or no class, are errors always: nothing can
    be learned from them. Warnings by default are what the gates catch anyway, or what the world may well do.
    """

    ranges: Severity = "error"  # a number outside min and max
    values: Severity = "error"  # a category that `values` does not list
    duplicates: Severity = "error"  # two rows of one entity and time
    empty: Severity = "error"  # a feature without any value
    constant: Severity = "warning"  # a feature with one value in every row
    leak: Severity = "error"  # a feature that alone tells the label
    null_share: Severity = "error"  # a feature is missing in far more rows than in the last training
    lost_class: Severity = "error"  # a class that the last training had is gone
    target: Severity = "warning"  # the label is distributed otherwise than in the last training
    row_count: Severity = "warning"  # too few rows to judge a candidate, or half of the last training's
    freshness: Severity = "warning"  # the newest labels or features are older than their own rhythm explains


class Drift(Frozen):
    """A feature of a window drifts if it differs significantly at `q` and by more than `psi`.

    `breaches` of the last `of` windows with any drift, the latest among them, are an alarm.
    """

    psi: float = Field(0.1, gt=0, description="Stability index below which no difference matters.")
    q: float = Field(0.01, gt=0, lt=1, description="Share of false findings among the features found to differ.")
    breaches: int = Field(2, ge=1, le=100)
    of: int = Field(3, ge=1, le=100)

    @model_validator(mode="after")
    def _reachable(self) -> "Drift":
        if self.breaches > self.of:
            raise ValueError(f"breaches {self.breaches} is above of {self.of}, so nothing would ever be found")
        return self


class Performance(Frozen):
    metric: str = Field("", description="Empty: that of gates.champion.")
    margin: Margin | None = Field(None, description="Loss that matters. Empty: 0.05, or 5% of a metric with a unit.")
    match: Duration = Field(
        timedelta(days=1), description="A label holds for the predictions made up to this long after its event time."
    )


class Monitoring(Frozen):
    window: Period = Field(timedelta(days=1), description="Length of a window; at least one seasonal cycle.")
    min_rows: int = Field(500, ge=1)
    drift: Drift = Drift()
    performance: Performance = Performance()


class Retrain(Frozen):
    """What starts a training by itself, and how often at most. A run by hand is never held back."""

    schedule: str | None = Field(None, description="Cron, UTC; empty: only by hand and by what monitoring finds.")
    on: tuple[Literal["drift", "performance", "new_labels", "age"], ...] = ("drift", "performance", "new_labels", "age")
    new_labels: int = Field(5000, ge=1, description="So many labels since the last training are a reason.")
    max_age: Period = Field(timedelta(days=30), description="So long since the last training is a reason.")
    cooldown: Duration = Field(timedelta(hours=6), description="Least time from one training to the next.")
    per_week: int = Field(3, ge=0, description="Trainings for drift, performance or labels in any seven days.")
    max_wait: Period = Field(timedelta(days=7), description="A reason that was held back for so long alerts people.")
