"""What must fit together in a model file beyond the type of each key."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from db.schema import RESERVED_COLUMNS

if TYPE_CHECKING:
    from pipelines.spec import ModelSpec

METRICS: Mapping[str, tuple[str, ...]] = {  # the first one is the task's default
    "multiclass": ("macro_f1", "accuracy", "log_loss"),
    "binary": ("roc_auc", "f1", "accuracy", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}

UNITLESS = {"macro_f1", "f1", "accuracy", "roc_auc", "r2", "log_loss"}  # a margin in their unit fits any label


def inconsistencies(spec: "ModelSpec") -> list[str]:
    """One line for each contradiction: the path of the key and what was expected there."""
    return [*_column_problems(spec), *_label_problems(spec), *_time_problems(spec), *_keep_problems(spec)]


def _column_problems(spec: "ModelSpec") -> Iterator[str]:
    columns, label = spec.features.columns, spec.label.column
    if reserved := RESERVED_COLUMNS & {*columns, label}:
        yield f"features.columns: {_listed(reserved)} is a name Evergreen uses itself; rename it with source.map"
    for name, role in ((label, "label"), (spec.entity, "entity")):
        if name in columns:
            yield f"features.columns: {name} is the {role}, it can't be a feature too"
    if both := set(columns) & set(spec.features.private):
        yield f"features.private: {_listed(both)} is also a feature"
    if spec.gates.slices and (unknown := set(spec.gates.slices.columns) - set(columns)):
        yield f"gates.slices.columns: {_listed(unknown)} is not a feature"


def _label_problems(spec: "ModelSpec") -> Iterator[str]:
    classes, known = spec.label.classes, METRICS[spec.task]
    if len(set(classes)) != len(classes):
        yield "label.classes: a class is named twice"
    fits, wanted = {
        "multiclass": (len(classes) >= 3, "at least 3 classes"),
        "binary": (len(classes) == 2, "exactly 2 classes, the positive one last"),
        "regression": (not classes, "none"),
    }[spec.task]
    if not fits:
        yield f"label.classes: expected {wanted} for a {spec.task} task, got {len(classes)}"
    asked = {
        "training.search.metric": spec.training.search.metric,
        "gates.champion.metric": spec.gates.champion.metric,
        "monitoring.performance.metric": spec.watched_metric,
        **{f"gates.minimum.{name}": name for name in spec.gates.minimum},
    }
    for path, metric in asked.items():
        if metric not in known:
            yield f"{path}: expected one of {', '.join(known)}, got {metric!r}"


def _time_problems(spec: "ModelSpec") -> Iterator[str]:
    split, window = spec.training.split, spec.training.window
    if spec.source.connection and not spec.source.query:
        yield "source.connection: needs source.query, the SQL to run over it"
    if spec.source.time_of_day and not spec.timed:
        yield "source.time_of_day: needs source.event_time, the column with the date"
    if (spec.source.time_zone or spec.source.lag is not None) and not spec.timed:
        yield "source.time_zone, a lag as source.available_at: need source.event_time"
    if not spec.timed:
        if split.by == "time":
            yield "training.split.by: data without source.event_time can only be split by entity"
        if window or spec.features.max_age or spec.label.maturity:
            yield "training.window, features.max_age, label.maturity: need source.event_time"
    if split.by == "entity" and split.validation + split.test >= 1:
        yield "training.split: validation and test leave nothing to train on"
    if split.by == "time" and isinstance(window, timedelta) and split.validation + split.test >= window:
        yield "training.split: validation and test are as long as training.window and leave nothing to train on"


def _keep_problems(spec: "ModelSpec") -> Iterator[str]:
    split, window = spec.training.split, spec.training.window
    if spec.keep is None:
        return
    if not spec.timed or spec.features.max_age is None:
        yield "keep: needs source.event_time and features.max_age, which says what a label still needs"
    if isinstance(window, timedelta) and spec.keep < window:
        yield "keep: expected at least training.window, which needs the labels of that time"
    if split.by == "time" and spec.keep <= split.validation + split.test + spec.label.maturity:
        yield "keep: expected more than training.split and label.maturity, else nothing is left to train on"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
