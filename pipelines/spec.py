"""The model file: one YAML file in `models/` is all that Evergreen knows of a model.

It is parsed once into frozen objects. It drives table creation, the point-in-time read, validation, the training pools,
the request schema and the DAGs. Keys that old files do not have get defaults, so every registered spec still parses.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from db.schema import CATEGORY_LENGTH, Column, Kind, StoreSchema
from pipelines.spec_monitoring import Monitoring, Retrain
from pipelines.spec_rules import METRICS, UNITLESS, inconsistencies
from pipelines.spec_source import Source
from pipelines.spec_types import Duration, Frozen, Margin, Period, Window
from pipelines.spec_validation import Validation
from utils.errors import SpecInvalid, UnknownModel

SPEC_VERSION: Literal[1] = 1
KINDS: Mapping[str, Kind] = {"numeric": "number", "categorical": "category", "text": "text"}
IDENTIFIER = r"^[a-z][a-z0-9_]{0,47}$"

Name = Annotated[str, Field(pattern=IDENTIFIER)]
Share = Annotated[float, Field(gt=0, lt=1)]


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

    depth: tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]] = (4, 8)
    learning_rate: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.03, 0.3)
    l2_leaf_reg: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 10.0)

    @model_validator(mode="after")
    def _ordered(self) -> "Space":
        for name in type(self).model_fields:
            low, high = getattr(self, name)
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


class ModelSpec(Frozen):
    """One model. Build it with `load_spec` or `ModelSpec.parse`; both fill in what depends on the task."""

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
    keep: Period | None = Field(None, description="How old labels may get, and what they need; empty: all is kept.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, given: Any) -> Any:
        """Defaults that depend on the task or on whether the data has time; never touches what the file says."""
        if not isinstance(given, dict):
            raise ValueError("expected keys and values, as in models/credit_score.yaml")
        filled = {**given}
        metric = METRICS.get(str(given.get("task")), ("",))[0]
        timed = bool((given.get("source") or {}).get("event_time")) if isinstance(given.get("source"), dict) else False
        training = {**_section(filled, "training")}
        training["split"] = training.get("split") or {"by": "time" if timed else "entity"}
        search = _section(training, "search")
        training["search"] = {**search, "metric": search.get("metric") or metric}
        gates = {**_section(filled, "gates")}
        champion = _section(gates, "champion")
        gates["champion"] = champion = {**champion, "metric": champion.get("metric") or metric}
        if champion["metric"] not in UNITLESS:  # no number fits every label's unit
            gates["champion"] = {"margin": "3%", **champion}
            gates["slices"] = {"margin": "15%", **slices} if (slices := _section(gates, "slices")) else None
        return {**filled, "training": training, "gates": gates}

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSpec":
        if problems := inconsistencies(self):
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def parse(cls, given: object, *, file: str) -> "ModelSpec":
        """A spec from parsed YAML or JSON.

        Raises: SpecInvalid naming `file`, each wrong key's path and what was expected there.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SpecInvalid(file=file, problems=[_problem(detail) for detail in error.errors()]) from None

    @property
    def timed(self) -> bool:
        return self.source.event_time is not None

    @property
    def store(self) -> StoreSchema:
        """The shape of this model's store tables."""
        return StoreSchema(
            model=self.name,
            features=tuple(Column(name, KINDS[feature.type]) for name, feature in self.features.columns.items()),
            label=Column(self.label.column, "number" if self.task == "regression" else "category"),
            timed=self.timed,
            max_age=self.features.max_age,
            entity=self.entity,
        )

    @property
    def watched_metric(self) -> str:
        """The metric that monitoring follows. Not filled in while parsing: files without it keep their hash."""
        return self.monitoring.performance.metric or self.gates.champion.metric

    @property
    def watched_margin(self) -> float | str:
        """The loss of it that matters."""
        given = self.monitoring.performance.margin
        return given if given is not None else (0.05 if self.watched_metric in UNITLESS else "5%")

    def to_json(self) -> dict[str, Any]:
        """What the file said, as plain JSON; `parse` reads it back to an equal spec."""
        dumped: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return {"spec_version": self.spec_version, **dumped}

    @property
    def hash(self) -> str:
        """SHA-256 in hex of the spec without its defaults, so a later Evergreen with more keys gives the same one."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def columns_of(self, kind: str) -> list[str]:
        """Names of the features of type `kind` (`numeric`, `categorical`, `text`), in the file's order."""
        return [name for name, feature in self.features.columns.items() if feature.type == kind]


def _section(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key)
    return value if isinstance(value, dict) else {}


def _problem(detail: Any) -> tuple[str, str]:
    # Discriminated unions put the branch's tag into the path; a user knows only the file's own keys.
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


def load_spec(path: Path) -> ModelSpec:
    """The spec in the YAML file at `path`.

    Raises: SpecInvalid where the file can't be read, is not YAML, breaks a rule, or is not named after its model.
    """
    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecInvalid(file=str(path), problems=[("the file", error.strerror or "can't be read")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecInvalid(
            file=str(path), problems=[("the file", f"is not YAML: {' '.join(str(error).split())}")]
        ) from None
    spec = ModelSpec.parse(parsed, file=path.name)
    if spec.name != path.stem:
        raise SpecInvalid(
            file=path.name, problems=[("name", f"expected the file's own name, {path.stem!r}, got {spec.name!r}")]
        )
    return spec


def model_names(folder: Path) -> list[str]:
    """Names of the models in `folder`, sorted; their files are not opened."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_spec(folder: Path, model: str) -> ModelSpec:
    """The spec of `model`.

    Raises: UnknownModel where `folder` has no such file; SpecInvalid.
    """
    names = model_names(folder)
    if model not in names:
        raise UnknownModel(model=model, available=names)
    return load_spec(folder / f"{model}.yaml")
