"""Requests and answers of one model's service, built from its model file. Nothing here knows of HTTP or BentoML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from api.requests.row_type import EXACT, Entity, Row, example, row_type
from pipelines.spec import ModelSpec

BATCH_ROWS = 1_000  # rows in one /predict_batch or ids in one /predict_by_id: their insert takes some 20 ms
SHOWN_PROBLEMS = 20
SOME_ID = "01980000-0000-7000-8000-000000000000"
UNKNOWN_KEY, BODY = "(unknown key)", "(body)"
EXPLAIN = (bool, Field(False, description="Adds `reasons` to the answer; takes some ten milliseconds a row."))


class Body(BaseModel):
    """What every request's body is: of exactly these keys and types."""

    model_config = ConfigDict(**EXACT, frozen=True)


class Nothing(Body):
    """A request without content: no body, or {}."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request. `row` counts from 0 in a batch; `reason` is one of pydantic's types."""

    field: str
    reason: str
    message: str
    row: int | None = None

    def __str__(self) -> str:
        place = self.field if self.row is None else f"row {self.row}, {self.field}"
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Schemas:
    """The types of one service. `row` checks one row; every missing feature of what it returns is None.

    `predict` has the fields data, a row, and explain; `predict_batch` has a list of rows as data; `predict_by_id` has a
    list of entities as ids; `feedback` has prediction_id and actual.
    """

    spec: ModelSpec
    row: TypeAdapter[Row]
    predict: type[BaseModel]
    predict_batch: type[BaseModel]
    predict_by_id: type[BaseModel]
    feedback: type[BaseModel]
    answer: type[BaseModel]
    answers: type[BaseModel]


def build_schemas(spec: ModelSpec, *, profile: Mapping[str, Any] | None = None) -> Schemas:
    """The types for `spec`; their example takes typical values from a reference profile where there is one."""
    shown = example(spec, profile=profile)
    row = row_type(spec, shown=shown)
    answer = _answer(spec)
    rows = Annotated[list[row], Field(min_length=1, max_length=BATCH_ROWS)]  # type: ignore[valid-type]
    batch_config = ConfigDict(json_schema_extra={"example": {"data": [shown]}})
    return Schemas(
        spec=spec,
        row=TypeAdapter(row),
        predict=_model(
            "Predict", ConfigDict(json_schema_extra={"example": {"data": shown}}), data=(row, ...), explain=EXPLAIN
        ),
        predict_batch=_model("PredictBatch", batch_config, data=(rows, ...), explain=EXPLAIN),
        predict_by_id=_predict_by_id(spec),
        feedback=_feedback(spec),
        answer=answer,
        answers=create_model("Answers", predictions=(list[answer], ...)),  # type: ignore[valid-type]
    )


def stored_row(schemas: Schemas, entity: str, values: Sequence[Any]) -> tuple[Row, list[str]]:
    """A row of the features that the store holds of `entity`, in the file's order, and what is doubtful about them.

    A value that a request might not have, since the model file has changed, counts as missing.
    """
    given = dict(zip(schemas.spec.features.columns, values, strict=True))
    named = {schemas.spec.entity: entity}
    try:
        return schemas.row.validate_python({**named, **given}), []
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors(include_url=False, include_input=False)}
        kept = {name: None if name in wrong else value for name, value in given.items()}
        return schemas.row.validate_python({**named, **kept}), [f"unfit in the store: {name}" for name in sorted(wrong)]


def problems(error: ValidationError, *, spec: ModelSpec) -> list[Problem]:
    """What is wrong with a request, the first twenty. No input value is in it; a message names an unknown key."""
    known = {spec.entity, *spec.features.columns, "data", "ids", "explain", "prediction_id", "actual"}
    found = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False)[:SHOWN_PROBLEMS]:
        path = detail["loc"][1:] if len(detail["loc"]) > 1 and detail["loc"][0] == "data" else detail["loc"]
        row = next((part for part in path if isinstance(part, int)), None)
        name = next((part for part in path if isinstance(part, str)), BODY if row is None else "data")
        reason, message = detail["type"], detail["msg"]
        if reason == "extra_forbidden":
            found.append(Problem(UNKNOWN_KEY, reason, f"{name[:64]!r} is not a key of this request", row))
        else:
            message = "is required" if reason == "missing" else message
            found.append(Problem(name if name in known else BODY, reason, message, row))
    return found


def same_requests(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two specs make the same requests and answers, so that a worker may go from one to the other.

    The order of the features counts: a worker hands a model its rows in the order that it started with.
    """
    parts = attrgetter("name", "task", "entity", "label.column", "label.classes", "features.columns")
    return bool(parts(one) == parts(other)) and list(one.features.columns) == list(other.features.columns)


def _model(name: str, config: ConfigDict, **fields: Any) -> type[BaseModel]:
    """A model like `Body`, with `config` on top of its own."""
    base = type(name, (Body,), {"model_config": config, "__module__": __name__})
    return create_model(name, __base__=base, __module__=__name__, **fields)


def _predict_by_id(spec: ModelSpec) -> type[BaseModel]:
    described = f"Values of {spec.entity} whose newest features are in the store."
    return _model(
        "PredictById",
        ConfigDict(json_schema_extra={"example": {"ids": ["example-1"]}}),
        ids=(Annotated[list[Entity], Field(min_length=1, max_length=BATCH_ROWS)], Field(description=described)),
        explain=EXPLAIN,
    )


def _feedback(spec: ModelSpec) -> type[BaseModel]:
    """`actual` has the label's type. It is read in lax mode where JSON has no type of its own: for the UUID."""
    actual: Any = float if spec.task == "regression" else Literal[spec.label.classes]
    shown = 100.0 if spec.task == "regression" else spec.label.classes[-1]
    described = f"What {spec.label.column} turned out to be."
    return _model(
        "Feedback",
        ConfigDict(json_schema_extra={"example": {"prediction_id": SOME_ID, "actual": shown}}),
        prediction_id=(UUID, Field(description="From the answer that the truth is about.")),
        actual=(actual, Field(description=described)),
    )


def _answer(spec: ModelSpec) -> type[BaseModel]:
    prediction: Any = float if spec.task == "regression" else Literal[spec.label.classes]
    first, *others = spec.label.classes or ("",)
    by_class = {first: 0.7, **{name: round(0.3 / len(others), 3) for name in others}} if others else None
    shown: dict[str, Any] = {
        "prediction_id": SOME_ID,
        "entity_id": "example-1",
        "prediction": first if by_class else 12.5,
        "confidence": 0.7 if by_class else None,
        "probabilities": by_class,
        "warnings": [],
        "model": spec.name,
        "version": 1,
    }
    return create_model(
        "Answer",
        __config__=ConfigDict(json_schema_extra={"example": shown}),
        prediction_id=(UUID, Field(description="Names this prediction in the log, and in /feedback.")),
        entity_id=(str, ...),
        prediction=(prediction, Field(description=f"The predicted {spec.label.column}.")),
        confidence=(float | None, Field(description="Probability of the predicted class; null for regression.")),
        probabilities=(dict[str, float] | None, Field(description="Probability by class; null for regression.")),
        warnings=(
            list[str],
            Field(description="Missing values, categories never seen in training, and unfit or old stored features."),
        ),
        model=(str, ...),
        version=(int, Field(description="The version in the registry that answered.")),
        reasons=(
            list[Reason],
            Field(default=[], description="Only with `explain`: what weighed most, heaviest first."),
        ),
    )


class Reason(BaseModel):
    """A feature that moved the prediction: for it, or against it where the contribution is negative."""

    feature: str
    value: float | str | None
    contribution: float = Field(
        description="By how much it moved the score from the average, as a SHAP value: in log-odds of the predicted"
        " class, or in the label's own unit for regression."
    )


class Metadata(BaseModel):
    """Which version answers, and where it came from."""

    model: str
    version: int
    sha256: str = Field(description="Of the files it was loaded from.")
    serving_since: str = Field(description="When this worker began to serve it, UTC.")
    deployed_at: str = Field(description="When it was decided that it should serve, UTC.")
    task: str
    run_id: str | None = Field(description="Airflow run that trained it.")
    snapshot_id: str | None = Field(description="Data it was trained on.")
    snapshot_sha256: str | None
    spec_hash: str
    code_commit: str | None
    fitted_until: str | None = Field(description="Newest label it learned from, UTC.")
    evaluated_as: str | None = Field(description="The version whose evaluation let it serve, for a final fit.")


class Recorded(BaseModel):
    """Feedback that was written."""

    recorded: bool
