"""The type of one model's rows, and an example row. A row has the entity, then the features in the model file's order.

A row is a dict, because a pydantic model takes longer to make.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import to_json
from typing_extensions import TypedDict

from db.store.schema import CATEGORY_LENGTH, ENTITY_LENGTH, TEXT_LENGTH
from pipelines.artifact.profile import OTHER
from pipelines.spec import Categorical, Feature, ModelSpec, Numeric

EXACT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # for rows and requests

type Row = dict[str, Any]


def row_type(spec: ModelSpec, *, example_row: Row) -> Any:
    """The type of a row, with `example_row` as its example.

    Validated rows have the keys in the type's order, even if some values are defaults.
    """
    entity = Annotated[Entity, Field(description="Whom or what the prediction is about.")]
    features = {name: _feature(feature) for name, feature in spec.features.columns.items()}
    row = TypedDict("Row", {spec.entity: entity, **features})  # type: ignore[misc]
    row.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        **EXACT, title=f"{spec.name} row", json_schema_extra={"example": example_row}
    )
    return row


def _from_int(value: object) -> object:
    return str(value) if type(value) is int else value


_Text = Annotated[str, Field(min_length=1, max_length=ENTITY_LENGTH)]
Entity = Annotated[_Text, BeforeValidator(_from_int, json_schema_input_type=_Text | int)]


def _feature(feature: Feature) -> Any:
    kind: Any
    extra: dict[str, Any] = {}
    if isinstance(feature, Numeric):
        kind = Annotated[float, Field(ge=feature.min, le=feature.max)]
        extra = {"unit": feature.unit} if feature.unit else {}
    elif isinstance(feature, Categorical):
        literal = Literal[feature.values] if feature.values else None
        kind = literal or Annotated[str, Field(min_length=1, max_length=CATEGORY_LENGTH)]
    else:
        kind = Annotated[str, Field(min_length=1, max_length=TEXT_LENGTH)]
    return Annotated[kind | None, Field(default=None, description=_description(feature), json_schema_extra=extra)]


def _description(feature: Feature) -> str:
    unit = f"in {feature.unit}" if isinstance(feature, Numeric) and feature.unit else ""
    limits = ""
    if isinstance(feature, Numeric):
        ends = [f"from {feature.min:g}" if feature.min is not None else ""]
        ends.append(f"to {feature.max:g}" if feature.max is not None else "")
        limits = " ".join(filter(None, ends))
    facts = ", ".join(filter(None, (feature.description, unit, limits)))
    return f"{facts[:1].upper()}{facts[1:]}. Null or absent: missing." if facts else "Null or absent: missing."


def example(spec: ModelSpec, *, profile: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A valid row: medians and the most frequent categories of `profile`, or else values within the limits.

    It is never the row of a real entity, because the page that shows it needs no key.
    """
    entries = (profile or {}).get("features", {})
    typical = {name: _typical(feature, entries.get(name, {})) for name, feature in spec.features.columns.items()}
    return {spec.entity: "example-1", **typical}


def _typical(feature: Feature, entry: Mapping[str, Any]) -> Any:
    if isinstance(feature, Numeric):
        edges = entry.get("edges")
        if edges:
            middle = edges[len(edges) // 2]
        elif feature.min is not None and feature.max is not None:
            middle = (feature.min + feature.max) / 2
        else:
            middle = 0.0
        return _within(feature, round(middle, 2))
    if isinstance(feature, Categorical):
        counts = {name: count for name, count in (entry.get("categories") or {}).items() if name != OTHER}
        allowed = {name: counts.get(name, 0) for name in feature.values} or counts
        return max(allowed, key=lambda name: allowed[name]) if allowed else "example"
    return "example"


def _within(feature: Numeric, value: float) -> float:
    low = value if feature.min is None else max(value, feature.min)
    return low if feature.max is None else min(low, feature.max)


def features_json(row: Row) -> str:
    """The features of a row as JSON. Missing features are null."""
    return to_json(dict(islice(row.items(), 1, None))).decode()
