"""Types of values in model files that have their own notation: durations, look-backs and margins."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from utils.duration import parse_duration, show_duration

AUTO: Literal["auto"] = "auto"
PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")

METRICS: Mapping[str, tuple[str, ...]] = {  # by task, the default metric first
    "multiclass": ("macro_f1", "accuracy", "log_loss"),
    "binary": ("roc_auc", "f1", "accuracy", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}

# The metrics that do not depend on the unit of the label.
UNITLESS = {"macro_f1", "f1", "accuracy", "roc_auc", "r2", "log_loss"}


class Frozen(BaseModel):
    """The base class of the sections. A section is immutable, and rejects unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _parse_look_back(value: object) -> object:
    return value if value == AUTO else parse_duration(value)


def _show_look_back(look_back: object) -> object:
    return show_duration(look_back) if isinstance(look_back, timedelta) else look_back


def _check_positive(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):
        raise ValueError("expected at least 1s")
    return duration


def _check_margin(value: object) -> object:
    if isinstance(value, str):
        if not PERCENT.fullmatch(value.strip()):
            raise ValueError(f"expected a number in the metric's own unit, or a share like 2%, got {value!r}")
        return value.strip()
    if isinstance(value, int | float) and value < 0:
        raise ValueError(f"expected a number that is not negative, got {value}")
    return value


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(show_duration, return_type=str, when_used="json")
]
Period = Annotated[Duration, AfterValidator(_check_positive)]
LookBack = Annotated[
    timedelta | Literal["auto"] | None,
    BeforeValidator(_parse_look_back),
    PlainSerializer(_show_look_back, when_used="json"),
]
Margin = Annotated[float | str, BeforeValidator(_check_margin)]


def margin_at(margin: float | str, reference: float) -> float:
    """`margin` in the unit of the metric. A share like `2%` is relative to `reference`, a value of the metric."""
    if isinstance(margin, str):
        return float(margin.rstrip("% ")) / 100 * abs(reference)
    return margin
