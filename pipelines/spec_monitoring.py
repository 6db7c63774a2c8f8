"""The keys of a model file that say when a window differs, and when that starts a training."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from pipelines.spec_types import Duration, Frozen, Margin, Period


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
