"""Check a snapshot against the model file, mostly with pandera. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines.spec import Categorical, Feature, ModelSpec, Numeric

EXAMPLE_LENGTH = 60  # characters of an example value


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule.

    rule: a key of `validation` in the model file, or `columns` or `label`, which are always errors.
    column: the column that breaks the rule. None if the whole snapshot breaks it.
    share: the share of rows that break the rule, from 0 to 1. It is 1 for a whole column or snapshot.
    text: the finding in one line. Without the name of the column, which comes before it.
    """

    rule: str
    column: str | None
    share: float
    text: str


def check_structure(frame: pd.DataFrame, *, spec: ModelSpec) -> Iterator[Finding]:
    """Report missing columns and columns of the wrong type."""
    import pandera.errors  # takes half a second to import, and only training needs it
    import pandera.pandas as pa

    numeric = {name: isinstance(feature, Numeric) for name, feature in spec.features.columns.items()}
    numeric[spec.label.column] = spec.task == "regression"
    schema = pa.DataFrameSchema(
        {name: pa.Column(float if is_number else object, nullable=True) for name, is_number in numeric.items()}
    )
    try:
        schema.validate(frame.iloc[:0], lazy=True)  # types need no rows, so pandera copies none
    except pandera.errors.SchemaErrors as errors:
        for error in errors.schema_errors:
            missing = error.reason_code.name == "COLUMN_NOT_IN_DATAFRAME"
            name = str(error.failure_cases) if missing else error.schema.name
            expected = "numbers" if numeric[name] else "text"
            actual = "" if missing else "text" if frame[name].dtype == object else frame[name].dtype
            text = "is not in the snapshot" if missing else f"holds {actual} where the model file has {expected}"
            yield Finding("columns", name, 1.0, text)


def check_values(frame: pd.DataFrame, *, spec: ModelSpec, features: Sequence[str], label: bool) -> Iterator[Finding]:
    """Report numbers out of range, values that are not allowed, and duplicate rows.

    features: the names of the features to check.
    label: whether to check the label too.
    """
    import pandera.errors

    try:
        # Nothing is coerced. `inplace` only saves a copy of the frame.
        _build_schema(spec, features=features, label=label).validate(frame, lazy=True, inplace=True)
    except pandera.errors.SchemaErrors as errors:
        for error in errors.schema_errors:
            rule, name = error.check.name, error.schema.name
            broken = error.check_output.index[~error.check_output]  # pandera leaves out rows without a value
            # The report must not name an entity, because the entity may have to be forgotten later.
            value: Any = frame.at[broken[0], name] if name else None
            example = "" if pd.isna(value) else f", first {str(value)[:EXAMPLE_LENGTH]!r}"
            text = f"{error.check.error} in {len(broken):,} of {len(frame):,} rows{example}"
            yield Finding(rule, name, len(broken) / len(frame), f"is {text}" if name else text)


def _build_schema(spec: ModelSpec, *, features: Sequence[str], label: bool) -> "pandera.DataFrameSchema":  # type: ignore[name-defined]  # noqa: F821
    """Build the schema. The name of a check is the rule, and the error of a check is the start of a finding's text."""
    import pandera.pandas as pa

    columns = {
        name: pa.Column(checks=[*_feature_checks(spec.features.columns[name])], nullable=True) for name in features
    }
    if label:
        not_missing = _build_check(pa.Check, pd.Series.notna, rule="label", text="missing", ignore_na=False)
        is_class = _build_check(pa.Check.isin, list(spec.label.classes), rule="label", text="no class")
        columns[spec.label.column] = pa.Column(
            checks=[not_missing, is_class] if spec.label.classes else not_missing, nullable=True
        )
    no_duplicates = _build_check(
        pa.Check,
        lambda rows: ~rows.duplicated(["entity_id", "event_time"]),
        rule="duplicates",
        text="a row of the same entity and time again",
    )
    return pa.DataFrameSchema(columns, checks=[no_duplicates])


def _feature_checks(feature: Feature) -> Iterator[Any]:
    import pandera.pandas as pa

    if isinstance(feature, Numeric) and feature.min is not None:
        yield _build_check(pa.Check.ge, feature.min, rule="ranges", text=f"below the minimum {feature.min:g}")
    if isinstance(feature, Numeric) and feature.max is not None:
        yield _build_check(pa.Check.le, feature.max, rule="ranges", text=f"above the maximum {feature.max:g}")
    if isinstance(feature, Categorical) and feature.values:
        yield _build_check(pa.Check.isin, list(feature.values), rule="values", text="none of its values")


def _build_check(factory: Callable[..., Any], *arguments: Any, rule: str, text: str, **options: Any) -> Any:
    # Without this limit pandera formats every row that breaks a rule, which takes minutes for a million rows.
    return factory(*arguments, name=rule, error=text, n_failure_cases=1, **options)


def check_variety(
    name: str, column: Mapping[str, Any], *, rows: int, before: Mapping[str, Any] | None
) -> Iterator[Finding]:
    """Report a feature that has no value, or the same value in all rows.

    column: the statistics of the feature.
    rows: the number of rows in the snapshot.
    before: the statistics of the last training's snapshot. None in a first training.
    """
    if not column["distinct"]:
        yield Finding("empty", name, 1.0, "has no value in any row")
    elif column["distinct"] == 1 and not column["missing"] and rows > 1:
        last_distinct = (before or {"columns": {}})["columns"].get(name, {}).get("distinct", 0)
        last_text = f"; it had {last_distinct:,} values in the last training" if last_distinct > 1 else ""
        yield Finding("constant", name, 1.0, f"has the same value in every row{last_text}")
