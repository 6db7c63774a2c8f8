"""The sections of a model file, with their keys and defaults."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from db.store.schema import CATEGORY_LENGTH
from pipelines.spec.values import Duration, Frozen, LookBack, Margin, Period
from utils.duration import duration

IDENTIFIER = r"^[a-z][a-z0-9_]{0,47}$"
LAG = re.compile(r"\+?\d+[smhd]")

Name = Annotated[str, Field(pattern=IDENTIFIER)]
Share = Annotated[float, Field(gt=0, lt=1)]
Severity = Literal["error", "warning"]


def _check_time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"expected the name of a time zone, like Europe/Zurich, got {name!r}") from None
    return name


class Source(Frozen):
    """The origin of the rows and the names of their columns.

    event_time: the column with the event time. None if the data has no time.
    time_of_day: the column with the hour (0 to 23) or the time (HH:MM), if `event_time` has only dates.
    """

    event_time: str | None = None
    time_of_day: str | None = None
    time_zone: Annotated[str, AfterValidator(_check_time_zone)] | None = Field(
        None, description="IANA name, for times without offset; empty: UTC."
    )
    available_at: str | None = Field(None, description="A column, or a lag after event_time, like +2d.")
    map: Mapping[str, str] = Field(default_factory=dict, description="Column of the file: name in the model file.")
    query: str | None = Field(None, description="SQL run before each training; :since is the start of the last pull.")
    connection: str | None = Field(None, description="Airflow connection of the query; empty: Evergreen's MariaDB.")

    @property
    def lag(self) -> timedelta | None:
        """The time from the event time to the availability time, if `available_at` is a lag."""
        text = self.available_at
        return duration(text.removeprefix("+")) if text and LAG.fullmatch(text) else None

    @property
    def available_column(self) -> str | None:
        """The column with availability times, if `available_at` is a column."""
        return None if self.lag is not None else self.available_at


class Numeric(Frozen):
    """A number. `min` and `max` are the ends of the allowed range, both included."""

    type: Literal["numeric"]
    description: str = ""
    unit: str = ""
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check_range(self) -> "Numeric":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Categorical(Frozen):
    """A category. If `values` is empty, every category is accepted, with a warning if no training row had it."""

    type: Literal["categorical"]
    description: str = ""
    values: tuple[Annotated[str, Field(min_length=1, max_length=CATEGORY_LENGTH)], ...] = ()


class Text(Frozen):
    """A text, of which models use the words."""

    type: Literal["text"]
    description: str = ""


Feature = Annotated[Numeric | Categorical | Text, Field(discriminator="type")]


class Label(Frozen):
    """The value to predict.

    classes: the names of the classes. Empty for a regression.
    maturity: the time after its event time in which a label may still arrive. Trainings use only older labels.
    """

    column: Name
    classes: tuple[str, ...] = ()
    maturity: Duration = timedelta(0)


class Features(Frozen):
    """The features of a model.

    max_age: the greatest age of a feature row at the event time of the label. None for no limit.
    private: columns that files may have, but that Evergreen does not read.
    """

    max_age: Duration | None = None
    columns: Mapping[Name, Feature] = Field(min_length=1)
    private: tuple[str, ...] = ()


class TimeSplit(Frozen):
    """A split by time. `test` is the length of the newest part, and `validation` that of the part before it."""

    by: Literal["time"]
    validation: Duration = timedelta(days=7)
    test: Duration = timedelta(days=7)


class EntitySplit(Frozen):
    """A split by entity. `validation` and `test` are shares of the entities."""

    by: Literal["entity"]
    validation: Share = 0.2
    test: Share = 0.2


class Space(Frozen):
    """The search space: a range for each of CatBoost's parameters, both ends included."""

    LOG: ClassVar[frozenset[str]] = frozenset({"learning_rate"})  # drawn on a log scale

    depth: tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]] = (4, 8)
    learning_rate: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.03, 0.3)
    l2_leaf_reg: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 10.0)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The low and the high end of each range, by parameter. The ends of an integer parameter are integers."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @model_validator(mode="after")
    def _check_ranges(self) -> "Space":
        for name, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"{name}: the first end, {low}, is above the second, {high}")
        return self


class Search(Frozen):
    """The search for the best parameters.

    trials: the number of trials.
    timeout: the time after which no new trial begins.
    metric: the metric to optimize on the validation rows.
    """

    trials: int = Field(20, ge=1, le=10_000)
    timeout: Duration = timedelta(minutes=10)
    metric: str = ""
    space: Space = Space()


class Training(Frozen):
    """The training of a candidate.

    final_fit: whether a promoted candidate is refitted on all rows before it serves.
    """

    window: LookBack = Field(None, description="Look-back; empty: all rows; auto: chosen by the search.")
    split: Annotated[TimeSplit | EntitySplit, Field(discriminator="by")]
    search: Search
    final_fit: bool = True


class ChampionGate(Frozen):
    """The comparison of the candidate with the champion.

    margin: the loss of `metric` that is accepted, in the metric's unit or as a share like `2%`.
    confidence: the one-sided confidence with which the candidate must be not worse, or better.
    """

    metric: str = ""
    margin: Margin = 0.005
    confidence: float = Field(0.95, gt=0.5, lt=1)
    require: Literal["not_worse", "better"] = "not_worse"


class SliceGate(Frozen):
    """The comparison with the champion in slices. A slice is the rows with one value of one of the columns."""

    columns: tuple[Name, ...]
    margin: Margin = 0.03


class Gates(Frozen):
    """The conditions for a promotion.

    minimum: the worst accepted value, by metric.
    min_rows: the least number of test rows.
    approval: whether a person must approve the deployment.
    """

    minimum: Mapping[str, float] = Field(default_factory=dict)
    champion: ChampionGate
    slices: SliceGate | None = None
    min_rows: int = Field(500, ge=1)
    approval: Literal["none", "human"] = "none"


class Validation(Frozen):
    """The severity of each rule. An error stops the training. A warning only appears in the report.

    Some findings are always errors, because training is impossible: a missing column, a column of another type, and a
    label that is missing or not a class. A rule is a warning by default if the gates find the problem too, or if the
    change may be real.

    ranges: a number is below `min` or above `max`.
    values: a category is not in `values`.
    duplicates: two rows have the same entity and time.
    empty: a feature has no values.
    constant: a feature has the same value in every row.
    leak: a feature alone predicts the label.
    null_share: a feature is missing in far more rows than in the last training.
    lost_class: a class of the last training has no rows.
    target: the label is distributed differently than in the last training.
    row_count: there are too few rows to judge a candidate, or less than half as many as in the last training.
    freshness: the newest label or feature row is older than the usual rhythm explains.
    """

    ranges: Severity = "error"
    values: Severity = "error"
    duplicates: Severity = "error"
    empty: Severity = "error"
    constant: Severity = "warning"
    leak: Severity = "error"
    null_share: Severity = "error"
    lost_class: Severity = "error"
    target: Severity = "warning"
    row_count: Severity = "warning"
    freshness: Severity = "warning"


class Drift(Frozen):
    """A feature of a window drifts if its difference from the profile is significant at `q` and larger than `psi`.

    An alarm needs a drifted feature in the latest window and in at least `breaches` of the last `of` windows.
    """

    psi: float = Field(0.1, gt=0, description="Population stability index up to which differences are ignored.")
    q: float = Field(0.01, gt=0, lt=1, description="False discovery rate among the drifted features.")
    breaches: int = Field(2, ge=1, le=100)
    of: int = Field(3, ge=1, le=100)

    @model_validator(mode="after")
    def _check_breaches(self) -> "Drift":
        if self.breaches > self.of:
            raise ValueError(f"breaches {self.breaches} is above of {self.of}, so nothing would ever be found")
        return self


class Performance(Frozen):
    """The comparison of a version's metric in windows with its metric at the evaluation."""

    metric: str = Field("", description="Empty: the metric of gates.champion.")
    margin: Margin | None = Field(
        None, description="Loss of the metric that counts as worse; empty: 0.05, or 5% of a metric with a unit."
    )
    match: Duration = Field(
        timedelta(days=1), description="A label applies to predictions up to this time after its event time."
    )


class Monitoring(Frozen):
    """The windows of monitoring. A window with fewer rows than `min_rows` is joined with the next window."""

    window: Period = Field(timedelta(days=1), description="Length of a window; at least one seasonal cycle.")
    min_rows: int = Field(500, ge=1)
    drift: Drift = Drift()
    performance: Performance = Performance()


class Retrain(Frozen):
    """The reasons for automatic trainings and their limits. The limits do not apply to manual runs."""

    schedule: str | None = Field(None, description="Cron, UTC; empty: only manual runs and those of monitoring.")
    on: tuple[Literal["drift", "performance", "new_labels", "age"], ...] = ("drift", "performance", "new_labels", "age")
    new_labels: int = Field(5000, ge=1, description="Number of new labels that is a reason.")
    max_age: Period = Field(timedelta(days=30), description="Time since the last training that is a reason.")
    cooldown: Duration = Field(timedelta(hours=6), description="Least time between two trainings.")
    per_week: int = Field(3, ge=0, description="Most trainings for drift, performance or labels in any seven days.")
    max_wait: Period = Field(timedelta(days=7), description="Time after which a held-back reason raises an alert.")
