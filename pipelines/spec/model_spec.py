"""The spec of a model: the parsed model file, the checks between its sections, and its hash."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from db.store.schema import RESERVED_COLUMNS, Column, Kind, StoreSchema
from pipelines.spec.sections import Features, Gates, Label, Monitoring, Name, Retrain, Source, Training, Validation
from pipelines.spec.values import METRICS, UNITLESS, Frozen, Period
from utils.errors import SpecInvalid

SPEC_VERSION: Literal[1] = 1
COLUMN_KINDS: Mapping[str, Kind] = {"numeric": "number", "categorical": "category", "text": "text"}


class ModelSpec(Frozen):
    """The spec of one model. Build it with `load_spec` or `ModelSpec.parse`, which report what is wrong in a file."""

    spec_version: Literal[1] = SPEC_VERSION
    name: Name
    description: str = ""
    task: Literal["multiclass", "binary", "regression"]
    entity: str
    source: Source = Source()
    label: Label
    features: Features
    training: Training
    validation: Validation = Validation()
    gates: Gates
    monitoring: Monitoring = Monitoring()
    retrain: Retrain = Retrain()
    keep: Period | None = Field(None, description="Age at which labels and their features are dropped; empty: never.")

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, content: Any) -> Any:
        """Add the defaults that depend on the task or on the presence of event times. Keys in the file are kept."""
        if not isinstance(content, dict):
            raise ValueError("expected keys and values, as in models/credit_score.yaml")
        metric = METRICS.get(str(content.get("task")), ("",))[0]
        timed = bool(_section(content, "source").get("event_time"))
        training = {**_section(content, "training")}
        training["split"] = training.get("split") or {"by": "time" if timed else "entity"}
        search = _section(training, "search")
        training["search"] = {**search, "metric": search.get("metric") or metric}
        gates = {**_section(content, "gates")}
        champion = _section(gates, "champion")
        gates["champion"] = champion = {**champion, "metric": champion.get("metric") or metric}
        if champion["metric"] not in UNITLESS:  # an absolute default would not suit the unit of every label
            gates["champion"] = {"margin": "3%", **champion}
            gates["slices"] = {"margin": "15%", **slices} if (slices := _section(gates, "slices")) else None
        return {**content, "training": training, "gates": gates}

    @model_validator(mode="after")
    def _check_consistency(self) -> "ModelSpec":
        if problems := find_inconsistencies(self):
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def parse(cls, content: object, *, file: str) -> "ModelSpec":
        """Build a spec from parsed YAML or JSON.

        file: the name of the file for error texts.

        Raises: SpecInvalid with the path of each wrong key and the expected value.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise SpecInvalid(file=file, problems=[_describe_problem(detail) for detail in error.errors()]) from None

    @property
    def timed(self) -> bool:
        """Whether rows have an event time."""
        return self.source.event_time is not None

    @property
    def store(self) -> StoreSchema:
        """The schema of this model's tables in the store."""
        return StoreSchema(
            model=self.name,
            features=tuple(Column(name, COLUMN_KINDS[feature.type]) for name, feature in self.features.columns.items()),
            label=Column(self.label.column, "number" if self.task == "regression" else "category"),
            timed=self.timed,
            max_age=self.features.max_age,
            entity=self.entity,
        )

    @property
    def watched_metric(self) -> str:
        """The metric that monitoring measures. Its default is not stored, so files without the key keep their hash."""
        return self.monitoring.performance.metric or self.gates.champion.metric

    @property
    def watched_margin(self) -> float | str:
        """The loss of the watched metric that counts as worse, in the metric's unit or as a share like `5%`."""
        margin = self.monitoring.performance.margin
        return margin if margin is not None else (0.05 if self.watched_metric in UNITLESS else "5%")

    def to_json(self) -> dict[str, Any]:
        """The content of the file as plain JSON, without defaults. `parse` builds an equal spec from it."""
        content: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return {"spec_version": self.spec_version, **content}

    @property
    def hash(self) -> str:
        """The SHA-256, in hex, of the spec without its defaults. New keys with defaults do not change the hash."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def columns_of(self, kind: str) -> list[str]:
        """The names of the features of type `kind`, in the order of the file.

        kind: `numeric`, `categorical` or `text`.
        """
        return [name for name, feature in self.features.columns.items() if feature.type == kind]


def _section(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The section `key` of a file. Empty if the file has no such section, or a wrong value in its place."""
    section = content.get(key)
    return section if isinstance(section, dict) else {}


def _describe_problem(detail: Any) -> tuple[str, str]:
    # Pydantic adds the type of a feature to the path, although the file has no such key.
    path = ".".join(str(part) for part in detail["loc"] if part not in {"[key]", "numeric", "categorical"})
    expected = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        expected = "is not a key Evergreen knows here"
    elif detail["type"] == "missing":
        expected = "is missing"
    elif detail["type"] == "string_type" and isinstance(detail["input"], bool):
        expected = "expected text: put it in quotes, for YAML reads yes, no, on and off as true and false"
    elif detail["type"] not in {"value_error"}:
        expected = f"{expected}, got {str(detail['input'])[:60]!r}"
    return path or "the file", expected


def find_inconsistencies(spec: ModelSpec) -> list[str]:
    """Return one line for each contradiction in the file: the path of the key and the expected value."""
    return [*_column_problems(spec), *_label_problems(spec), *_time_problems(spec), *_keep_problems(spec)]


def _column_problems(spec: ModelSpec) -> Iterator[str]:
    columns, label = spec.features.columns, spec.label.column
    if reserved := RESERVED_COLUMNS & {*columns, label}:
        yield f"features.columns: {_join_names(reserved)} is a name Evergreen uses itself; rename it with source.map"
    for name, role in ((label, "label"), (spec.entity, "entity")):
        if name in columns:
            yield f"features.columns: {name} is the {role}, it can't be a feature too"
    if duplicates := set(columns) & set(spec.features.private):
        yield f"features.private: {_join_names(duplicates)} is also a feature"
    if spec.gates.slices and (unknown := set(spec.gates.slices.columns) - set(columns)):
        yield f"gates.slices.columns: {_join_names(unknown)} is not a feature"


def _label_problems(spec: ModelSpec) -> Iterator[str]:
    classes, metrics = spec.label.classes, METRICS[spec.task]
    if len(set(classes)) != len(classes):
        yield "label.classes: a class is named twice"
    count_fits, expected = {
        "multiclass": (len(classes) >= 3, "at least 3 classes"),
        "binary": (len(classes) == 2, "exactly 2 classes, the positive one last"),
        "regression": (not classes, "none"),
    }[spec.task]
    if not count_fits:
        yield f"label.classes: expected {expected} for a {spec.task} task, got {len(classes)}"
    metrics_by_path = {
        "training.search.metric": spec.training.search.metric,
        "gates.champion.metric": spec.gates.champion.metric,
        "monitoring.performance.metric": spec.watched_metric,
        **{f"gates.minimum.{name}": name for name in spec.gates.minimum},
    }
    for path, metric in metrics_by_path.items():
        if metric not in metrics:
            yield f"{path}: expected one of {', '.join(metrics)}, got {metric!r}"


def _time_problems(spec: ModelSpec) -> Iterator[str]:
    split, look_back = spec.training.split, spec.training.window
    if spec.source.connection and not spec.source.query:
        yield "source.connection: needs source.query, the SQL to run over it"
    if spec.source.time_of_day and not spec.timed:
        yield "source.time_of_day: needs source.event_time, the column with the date"
    if (spec.source.time_zone or spec.source.lag is not None) and not spec.timed:
        yield "source.time_zone, a lag as source.available_at: need source.event_time"
    if not spec.timed:
        if split.by == "time":
            yield "training.split.by: data without source.event_time can only be split by entity"
        if look_back or spec.features.max_age or spec.label.maturity:
            yield "training.window, features.max_age, label.maturity: need source.event_time"
    if split.by == "entity" and split.validation + split.test >= 1:
        yield "training.split: validation and test leave nothing to train on"
    if split.by == "time" and isinstance(look_back, timedelta) and split.validation + split.test >= look_back:
        yield "training.split: validation and test are as long as training.window and leave nothing to train on"


def _keep_problems(spec: ModelSpec) -> Iterator[str]:
    split, look_back = spec.training.split, spec.training.window
    if spec.keep is None:
        return
    if not spec.timed or spec.features.max_age is None:
        yield "keep: needs source.event_time and features.max_age, which says what a label still needs"
    if isinstance(look_back, timedelta) and spec.keep < look_back:
        yield "keep: expected at least training.window, which needs the labels of that time"
    if split.by == "time" and spec.keep <= split.validation + split.test + spec.label.maturity:
        yield "keep: expected more than training.split and label.maturity, else nothing is left to train on"


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
