"""Validate: a snapshot against its model file, before anything is learned from it."""

import pandas as pd

from pipelines.snapshot import Snapshot
from pipelines.spec import Categorical, ModelSpec, Numeric
from utils.errors import ValidationFailed


def validate(snapshot: Snapshot, *, spec: ModelSpec) -> None:
    """Check types, ranges, allowed values, labels and duplicates.

    Raises: ValidationFailed with one line a broken rule, the one with the most rows first.
    """
    if found := violations(snapshot.frame, spec=spec):
        raise ValidationFailed(model=spec.name, violations=found)


def violations(frame: pd.DataFrame, *, spec: ModelSpec) -> list[str]:
    """One line for each rule that rows of `frame` break, with how many rows and the first wrong value."""
    import pandera.errors  # takes a second to import, and only training needs it

    lines = [
        f"{name}: no row has a value" for name in spec.features.columns if name in frame and frame[name].isna().all()
    ]
    try:
        frame_schema(spec).validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        groups = cases.groupby(["column", "check"], dropna=False, sort=False)
        ranked = sorted(groups, key=lambda group: -len(group[1]))
        lines += [_line(str(column), str(check), group) for (column, check), group in ranked]
    return lines


def frame_schema(spec: ModelSpec) -> "pandera.DataFrameSchema":  # type: ignore[name-defined]  # noqa: F821
    """The model file as a pandera schema of a snapshot's frame."""
    import pandera.pandas as pa

    def column(feature: object) -> "pa.Column":
        if isinstance(feature, Numeric):
            low = [pa.Check.ge(feature.min)] if feature.min is not None else []
            high = [pa.Check.le(feature.max)] if feature.max is not None else []
            return pa.Column(float, [*low, *high], nullable=True)
        closed = isinstance(feature, Categorical) and feature.values
        return pa.Column(object, [pa.Check.isin(list(feature.values))] if closed else [], nullable=True)  # type: ignore[attr-defined]

    label = (
        pa.Column(float) if spec.task == "regression" else pa.Column(object, pa.Check.isin(list(spec.label.classes)))
    )
    columns = {name: column(feature) for name, feature in spec.features.columns.items()}
    return pa.DataFrameSchema(
        {"entity_id": pa.Column(object), spec.label.column: label, **columns}, unique=["entity_id", "event_time"]
    )


def _line(column: str, check: str, cases: pd.DataFrame) -> str:
    first = cases["failure_case"].iloc[0]
    return f"{column}: {check} fails in {len(cases):,} row(s), first {first!r}"
