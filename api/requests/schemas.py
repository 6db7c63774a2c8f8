"""Types of the requests and answers of one model's service, built from its model file, without HTTP and BentoML."""

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
    """The base of every request's body. It allows exactly its own keys and types."""

    model_config = ConfigDict(**EXACT, frozen=True)


class Nothing(Body):
    """A request without content: no body, or {}."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a request.

    field: the field's name, UNKNOWN_KEY or BODY.
    reason: one of pydantic's error types.
    message: the text for the client, without any input value.
    row: the row's place in a batch, from 0. None outside a batch.
    """

    field: str
    reason: str
    message: str
    row: int | None = None

    def __str__(self) -> str:
        place = self.field if self.row is None else f"row {self.row}, {self.field}"
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Schemas:
    """The types of one service.

    spec: the model file that they are built from.
    row: validates one row. Missing features of the result are None.
    predict: a request with a row as `data`, and `explain`.
    predict_batch: a request with a list of rows as `data`, and `explain`.
    predict_by_id: a request with a list of entities as `ids`, and `explain`.
    feedback: a request with `prediction_id` and `actual`.
    answer: the answer to `predict`.
    answers: the answer to `predict_batch` and `predict_by_id`.
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
    """The types for `spec`. Their example has typical values from the reference `profile`, if there is one."""
    example_row = example(spec, profile=profile)
    row = row_type(spec, example_row=example_row)
    answer = _answer(spec)
    rows = Annotated[list[row], Field(min_length=1, max_length=BATCH_ROWS)]  # type: ignore[valid-type]
    config = ConfigDict(json_schema_extra={"example": {"data": example_row}})
    batch_config = ConfigDict(json_schema_extra={"example": {"data": [example_row]}})
    return Schemas(
        spec=spec,
        row=TypeAdapter(row),
        predict=_model("Predict", config, data=(row, ...), explain=EXPLAIN),
        predict_batch=_model("PredictBatch", batch_config, data=(rows, ...), explain=EXPLAIN),
        predict_by_id=_predict_by_id(spec),
        feedback=_feedback(spec),
        answer=answer,
        answers=create_model("Answers", predictions=(list[answer], ...)),  # type: ignore[valid-type]
    )


def stored_row(schemas: Schemas, entity: str, values: Sequence[Any]) -> tuple[Row, list[str]]:
    """A row of `entity` with its `values` in the store, which are in the model file's order, and warnings about them.

    A stored value may be invalid after a change of the model file. It then counts as missing.
    """
    features = dict(zip(schemas.spec.features.columns, values, strict=True))
    key = {schemas.spec.entity: entity}
    try:
        return schemas.row.validate_python({**key, **features}), []
    except ValidationError as error:
        invalid = {str(detail["loc"][0]) for detail in error.errors(include_url=False, include_input=False)}
        valid = {name: None if name in invalid else value for name, value in features.items()}
        warnings = [f"unfit in the store: {name}" for name in sorted(invalid)]
        return schemas.row.validate_python({**key, **valid}), warnings


def problems(error: ValidationError, *, spec: ModelSpec) -> list[Problem]:
    """The first twenty problems of a request. They contain no input value. A message names an unknown key."""
    field_names = {spec.entity, *spec.features.columns, "data", "ids", "explain", "prediction_id", "actual"}
    request_problems = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False)[:SHOWN_PROBLEMS]:
        path = detail["loc"][1:] if len(detail["loc"]) > 1 and detail["loc"][0] == "data" else detail["loc"]
        row = next((part for part in path if isinstance(part, int)), None)
        name = next((part for part in path if isinstance(part, str)), BODY if row is None else "data")
        reason, message = detail["type"], detail["msg"]
        if reason == "extra_forbidden":
            request_problems.append(Problem(UNKNOWN_KEY, reason, f"{name[:64]!r} is not a key of this request", row))
        else:
            message = "is required" if reason == "missing" else message
            request_problems.append(Problem(name if name in field_names else BODY, reason, message, row))
    return request_problems


def same_requests(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two specs have the same requests and answers, so that a worker may change from one to the other.

    The order of the features counts: a worker passes the values of a row in the order that it started with.
    """
    parts = attrgetter("name", "task", "entity", "label.column", "label.classes", "features.columns")
    return bool(parts(one) == parts(other)) and list(one.features.columns) == list(other.features.columns)


def _model(name: str, config: ConfigDict, **fields: Any) -> type[BaseModel]:
    """A subclass of `Body` with `fields`, whose configuration is extended by `config`."""
    base = type(name, (Body,), {"model_config": config, "__module__": __name__})
    return create_model(name, __base__=base, __module__=__name__, **fields)


def _predict_by_id(spec: ModelSpec) -> type[BaseModel]:
    description = f"Values of {spec.entity} whose newest features are in the store."
    return _model(
        "PredictById",
        ConfigDict(json_schema_extra={"example": {"ids": ["example-1"]}}),
        ids=(Annotated[list[Entity], Field(min_length=1, max_length=BATCH_ROWS)], Field(description=description)),
        explain=EXPLAIN,
    )


def _feedback(spec: ModelSpec) -> type[BaseModel]:
    """The request of /feedback. `actual` has the label's type. The id is parsed from a string: JSON has no UUID."""
    actual: Any = float if spec.task == "regression" else Literal[spec.label.classes]
    example_actual = 100.0 if spec.task == "regression" else spec.label.classes[-1]
    description = f"What {spec.label.column} turned out to be."
    return _model(
        "Feedback",
        ConfigDict(json_schema_extra={"example": {"prediction_id": SOME_ID, "actual": example_actual}}),
        prediction_id=(UUID, Field(description="From the answer that the truth is about.")),
        actual=(actual, Field(description=description)),
    )


def _answer(spec: ModelSpec) -> type[BaseModel]:
    prediction: Any = float if spec.task == "regression" else Literal[spec.label.classes]
    first, *others = spec.label.classes or ("",)
    by_class = {first: 0.7, **{name: round(0.3 / len(others), 3) for name in others}} if others else None
    example_answer: dict[str, Any] = {
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
        __config__=ConfigDict(json_schema_extra={"example": example_answer}),
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
