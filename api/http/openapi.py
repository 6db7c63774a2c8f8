"""The OpenAPI document: BentoML's own, plus the exact requests and answers, working examples and the key."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from api.http.guard import MAX_BODY, REQUEST_SECONDS
from api.requests.schemas import BATCH_ROWS
from pipelines.spec import ModelSpec

REFERENCE = "#/components/schemas/{model}"
PROBLEM = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "The first thing that is wrong, with the field's name."},
        "detail": {
            "type": "array",
            "description": "Everything that is wrong with the body, up to twenty.",
            "items": {
                "type": "object",
                "required": ["field", "reason", "message"],
                "properties": {
                    "row": {"type": "integer", "description": "Of a batch, counted from 0."},
                    "field": {"type": "string"},
                    "reason": {"type": "string"},
                    "message": {"type": "string"},
                },
            },
        },
    },
}
REFUSALS = {
    "400": "The body is wrong; `detail` names each field.",
    "401": "The key is missing or wrong.",
    "408": f"The body did not arrive within {REQUEST_SECONDS:.0f} s.",
    "413": f"The body is larger than {MAX_BODY // 1_000_000} MB.",
    "415": "The body is not declared as JSON.",
    "503": "Not now: no model, a full queue, no MariaDB. Nothing was answered; try again after Retry-After seconds.",
    "504": f"No answer within {REQUEST_SECONDS:.0f} s. Whether it was logged is unknown; "
    "try again after Retry-After seconds.",
}
ENDPOINT_REFUSALS = {  # refusals of single endpoints
    "/predict": {"500": "The log refuses the prediction's row, so it is not answered."},
    "/predict_batch": {"500": "The log refuses a row, so none is answered."},
    "/predict_by_id": {
        "404": "Some ids are not in the store, so none is answered; `detail` names each.",
        "500": "The log refuses a row, so none is answered.",
    },
    "/feedback": {"404": "No prediction with this id is in the log."},
}


class _InOrder(GenerateJsonSchema):
    """A schema generator that keeps the model file's order of features, in examples too. pydantic sorts examples."""

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value


def document(
    base: dict[str, Any],
    *,
    spec: ModelSpec,
    endpoints: Mapping[str, tuple[type[BaseModel], type[BaseModel]]],
    key: bool,
) -> dict[str, Any]:
    """`base` with the request and answer of each path of `endpoints`. `key`: whether requests need a bearer key."""
    models = [(request, "validation") for request, _ in endpoints.values()]
    models += [(answer, "serialization") for _, answer in endpoints.values()]
    references, definitions = models_json_schema(
        models,  # type: ignore[arg-type]
        ref_template=REFERENCE,
        schema_generator=_InOrder,
    )
    components: dict[str, Any] = {"schemas": {**definitions["$defs"], "Problem": PROBLEM}}
    if key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths = dict(base["paths"])
    for path, (request, answer) in endpoints.items():
        post = {**paths[path]["post"], "requestBody": _content(references[request, "validation"], required=True)}
        post["responses"] = {
            "200": _content(references[answer, "serialization"], description="The answer."),
            **_refusals(REFUSALS | ENDPOINT_REFUSALS.get(path, {})),
        }
        paths[path] = {"post": {**post, "security": [{"key": []}]} if key else post}
    info = {"title": spec.name, "version": f"spec {spec.hash[:12]}", "description": _introduction(spec, key=key)}
    return {**base, "openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _content(schema: Mapping[str, Any], **properties: Any) -> dict[str, Any]:
    return {**properties, "content": {"application/json": {"schema": schema}}}


def _refusals(descriptions: Mapping[str, str]) -> dict[str, Any]:
    problem = {"$ref": REFERENCE.format(model="Problem")}
    return {status: _content(problem, description=descriptions[status]) for status in sorted(descriptions)}


def _introduction(spec: ModelSpec, *, key: bool) -> str:
    key_header = " Requests carry the header `Authorization: Bearer KEY`." if key else ""
    return (
        f"{spec.description or spec.name}\n\nPredicts `{spec.label.column}` of a `{spec.entity}`. Every answered"
        f" prediction is in the log under its `prediction_id`. A missing feature is null or left out, and is answered"
        f" with a warning; an unknown key or a value outside the limits is refused. At most {BATCH_ROWS:,} rows a"
        f" batch.{key_header} A request that is sent again with the same `Idempotency-Key: SECONDS-NAME` (Unix time of"
        " the first attempt, a name of its own) is logged once."
    )
