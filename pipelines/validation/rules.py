"""The rules that a snapshot is held against: those of its model file, with pandera where it carries. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines.spec import Categorical, Feature, ModelSpec, Numeric

SHOWN = 60  # characters of an example value


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule. `share`: of the rows, 1 where it is the whole column or snapshot. `said`: one line.

    `rule` is a key of `validation` in the model file, or `columns` or `label`, which are errors always.
    """

    rule: str
    column: str | None
    share: float
    said: str


def structure(frame: pd.DataFrame, *, spec: ModelSpec) -> Iterator[Finding]:
    """Missing columns and wrong types. They are seen without any row, which spares pandera a copy of each."""
    import pandera.errors  # takes half a second to import, and only training needs it
    import pandera.pandas as pa

    numeric = {name: isinstance(feature, Numeric) for name, feature in spec.features.columns.items()}
    numeric[spec.label.column] = spec.task == "regression"
    schema = pa.DataFrameSchema(
        {name: pa.Column(float if is_number else object, nullable=True) for name, is_number in numeric.items()}
    )
    try:
        schema.validate(frame.iloc[:0], lazy=True)
    except pandera.errors.SchemaErrors as errors:
        for error in errors.schema_errors:
            absent = error.reason_code.name == "COLUMN_NOT_IN_DATAFRAME"
            name = str(error.failure_cases) if absent else error.schema.name
            wanted = "numbers" if numeric[name] else "text"
            held = "" if absent else "text" if frame[name].dtype == object else frame[name].dtype
            said = "is not in the snapshot" if absent else f"holds {held} where the model file has {wanted}"
            yield Finding("columns", name, 1.0, said)


def values(frame: pd.DataFrame, *, spec: ModelSpec, names: Sequence[str], label: bool) -> Iterator[Finding]:
    """Broken ranges, allowed values, labels (where `label`) and duplicates, of the features `names`."""
    import pandera.errors

    try:
        # Nothing is coerced; in place only spares a copy of the frame.
        _schema(spec, names=names, label=label).validate(frame, lazy=True, inplace=True)
    except pandera.errors.SchemaErrors as errors:
        for error in errors.schema_errors:
            rule, name = error.check.name, error.schema.name
            wrong = error.check_output.index[~error.check_output]  # pandera leaves rows without a value out
            # An entity may have to be forgotten some day, so none is named.
            value: Any = frame.at[wrong[0], name] if name else None
            first = "" if pd.isna(value) else f", first {str(value)[:SHOWN]!r}"
            said = f"{error.check.error} in {len(wrong):,} of {len(frame):,} rows{first}"
            yield Finding(rule, name, len(wrong) / len(frame), f"is {said}" if name else said)


def _schema(spec: ModelSpec, *, names: Sequence[str], label: bool) -> "pandera.DataFrameSchema":  # type: ignore[name-defined]  # noqa: F821
    """Each check's name is its rule, and its error what is told."""
    import pandera.pandas as pa

    columns = {name: pa.Column(checks=[*_checks(spec.features.columns[name])], nullable=True) for name in names}
    if label:
        there = _check(pa.Check, pd.Series.notna, rule="label", said="missing", ignore_na=False)
        known = _check(pa.Check.isin, list(spec.label.classes), rule="label", said="no class")
        columns[spec.label.column] = pa.Column(checks=[there, known] if spec.label.classes else there, nullable=True)
    once = _check(
        pa.Check,
        lambda rows: ~rows.duplicated(["entity_id", "event_time"]),
        rule="duplicates",
        said="a row of the same entity and time again",
    )
    return pa.DataFrameSchema(columns, checks=[once])


def _checks(feature: Feature) -> Iterator[Any]:
    import pandera.pandas as pa

    if isinstance(feature, Numeric) and feature.min is not None:
        yield _check(pa.Check.ge, feature.min, rule="ranges", said=f"below the minimum {feature.min:g}")
    if isinstance(feature, Numeric) and feature.max is not None:
        yield _check(pa.Check.le, feature.max, rule="ranges", said=f"above the maximum {feature.max:g}")
    if isinstance(feature, Categorical) and feature.values:
        yield _check(pa.Check.isin, list(feature.values), rule="values", said="none of its values")


def _check(make: Callable[..., Any], *given: Any, rule: str, said: str, **options: Any) -> Any:
    # Without a limit pandera makes a text of every wrong row: minutes where a million are wrong.
    return make(*given, name=rule, error=said, n_failure_cases=1, **options)


def variety(name: str, column: Mapping[str, Any], *, rows: int, before: Mapping[str, Any] | None) -> Iterator[Finding]:
    """A feature without any value, or with one in all rows. `column`: its statistics, `before`: the last snapshot's."""
    if not column["distinct"]:
        yield Finding("empty", name, 1.0, "has no value in any row")
    elif column["distinct"] == 1 and not column["missing"] and rows > 1:
        known = (before or {"columns": {}})["columns"].get(name, {}).get("distinct", 0)
        was = f"; it had {known:,} values in the last training" if known > 1 else ""
        yield Finding("constant", name, 1.0, f"has the same value in every row{was}")
