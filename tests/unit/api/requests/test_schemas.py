"""Requests and answers built from a model file: valid and invalid requests, and the text of the errors."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.requests.row_type import example, features_json
from api.requests.schemas import BATCH_ROWS, build_schemas, problems, same_requests
from db.log.writing import LOG, LOG_COLUMNS
from db.store.schema import CATEGORY_LENGTH, ENTITY_LENGTH, TEXT_LENGTH
from pipelines.spec import Categorical, ModelSpec, Numeric, find_spec
from utils.version import ROOT

SPEC = find_spec(ROOT / "models", "credit_score")
SCHEMAS = build_schemas(SPEC)


def parse(row, *, schemas=SCHEMAS):
    return schemas.predict.model_validate_json(json.dumps({"data": row})).data


def problems_of(model, content):
    with pytest.raises(ValidationError) as error:
        model.model_validate_json(content)
    return problems(error.value, spec=SPEC)


def refusals(row, *, schemas=SCHEMAS):
    with pytest.raises(ValidationError) as error:
        parse(row, schemas=schemas)
    return problems(error.value, spec=schemas.spec)


def spec_with(columns, **keys):
    task = {"task": "binary", "label": {"column": "outcome", "classes": ["no", "yes"]}}
    content = {"name": "tiny", "entity": "id", "features": {"columns": columns}, **task, **keys}
    return ModelSpec.parse(content, file="tiny.yaml")


def values_for(feature):
    if isinstance(feature, Numeric):
        return st.floats(feature.min, feature.max, allow_nan=False, allow_infinity=False)
    if isinstance(feature, Categorical):
        return st.sampled_from(feature.values) if feature.values else st.text(min_size=1, max_size=CATEGORY_LENGTH)
    return st.text(min_size=1, max_size=TEXT_LENGTH)


VALID = st.fixed_dictionaries(
    {"customer_id": st.text(min_size=1, max_size=ENTITY_LENGTH)},
    optional={name: st.none() | values_for(feature) for name, feature in SPEC.features.columns.items()},
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(VALID)
def test_every_row_within_the_limits_is_taken_and_keeps_its_values(row):
    entity, *features = parse(row).values()
    assert entity == row["customer_id"]
    assert features == [row.get(name) for name in SPEC.features.columns]
    assert json.loads(features_json(parse(row))) == dict(zip(SPEC.features.columns, features, strict=True))


@given(ANY_JSON)
def test_any_other_json_is_refused_with_known_field_names_only(content):
    names = {"customer_id", "data", "(body)", "(unknown key)", *SPEC.features.columns}
    result = problems_of(SCHEMAS.predict, json.dumps(content))
    assert result
    assert {problem.field for problem in result} <= names


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_another_error(content):
    assert problems_of(SCHEMAS.predict_batch, content)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("age", 121, "less_than_equal"),
        ("age", 13.99, "greater_than_equal"),
        ("age", "30", "float_type"),
        ("age", True, "float_type"),
        ("age", [30], "float_type"),
        ("age", math.nan, "finite_number"),
        ("monthly_balance", math.inf, "finite_number"),
        ("monthly_balance", 10**400, "finite_number"),
        ("credit_mix", "good", "literal_error"),
        ("occupation", "", "string_too_short"),
        ("occupation", "x" * (CATEGORY_LENGTH + 1), "string_too_long"),
        ("occupation", 7, "string_type"),
        ("type_of_loan", "x" * (TEXT_LENGTH + 1), "string_too_long"),
        ("customer_id", "", "string_too_short"),
        ("customer_id", "x" * (ENTITY_LENGTH + 1), "string_too_long"),
        ("customer_id", None, "string_type"),
        ("customer_id", 1.5, "string_type"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_field(field, value, reason):
    (problem,) = refusals({"customer_id": "a", field: value})
    assert (problem.field, problem.reason) == (field, reason)
    assert str(problem).startswith(f"{field}: ")


def test_a_number_as_entity_is_its_digits():
    assert parse({"customer_id": 42})["customer_id"] == "42"


def test_a_message_holds_no_input_value():
    result = refusals({"customer_id": "a", "age": 98765, "occupation": "secret" * 40, "credit_mix": "secret"})
    assert len(result) == 3
    assert not [problem for problem in result if "secret" in problem.message or "98765" in problem.message]


def test_an_unknown_key_is_named_but_counted_under_one_name():
    (problem,) = refusals({"customer_id": "a", "ssn": "123"})
    assert problem.field == "(unknown key)"
    assert "'ssn'" in problem.message
    assert "123" not in problem.message


def test_a_missing_entity_is_named():
    (problem,) = refusals({"age": 30})
    assert str(problem) == "customer_id: is required"


def test_a_wrong_row_of_a_batch_is_named_by_its_number():
    body = json.dumps({"data": [{"customer_id": "a"}, {"customer_id": "b", "age": 300}]})
    with pytest.raises(ValidationError) as error:
        SCHEMAS.predict_batch.model_validate_json(body)
    (problem,) = problems(error.value, spec=SPEC)
    assert (problem.row, problem.field) == (1, "age")
    assert str(problem).startswith("row 1, age: ")


@pytest.mark.parametrize("rows", [0, BATCH_ROWS + 1])
def test_a_batch_of_no_or_too_many_rows_is_refused(rows):
    with pytest.raises(ValidationError) as error:
        SCHEMAS.predict_batch.model_validate_json(json.dumps({"data": [{"customer_id": "a"}] * rows}))
    assert problems(error.value, spec=SPEC)[0].field == "data"


def test_features_may_have_names_that_python_or_pydantic_use():
    spec = spec_with({name: {"type": "numeric"} for name in ("json", "copy", "data", "model_fields", "class", "f1")})
    schemas = build_schemas(spec)
    row = {"id": "a", "json": 1.0, "copy": 2.0, "data": 3.0, "model_fields": 4.0, "class": 5.0, "f1": 6.0}
    assert parse(dict(reversed(row.items())), schemas=schemas) == row
    assert list(parse(dict(reversed(row.items())), schemas=schemas)) == list(row)
    (problem,) = refusals({**row, "data": "x"}, schemas=schemas)
    assert problem.field == "data"


def test_the_schema_shows_units_limits_and_classes():
    schema = SCHEMAS.row.json_schema()
    age, mix = schema["properties"]["age"], schema["properties"]["credit_mix"]
    assert age["unit"] == "years"
    assert "from 14 to 120" in age["description"]
    assert (age["anyOf"][0]["minimum"], age["anyOf"][0]["maximum"]) == (14, 120)
    assert mix["anyOf"][0]["enum"] == ["Good", "Standard", "Bad"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["customer_id"]


def test_the_example_is_taken_with_and_without_a_profile():
    profile = {
        "features": {
            "age": {"edges": [20.0, 33.0, 500.0]},
            "annual_income": {"edges": [1.0, 41_234.567, 9e9]},
            "occupation": {"categories": {"Doctor": 3, "Teacher": 9, "(other)": 100}},
            "credit_mix": {"categories": {"Bad": 5, "(other)": 0}},
        }
    }
    typical = example(SPEC, profile=profile)
    assert (typical["age"], typical["annual_income"]) == (33.0, 41_234.57)
    assert (typical["occupation"], typical["credit_mix"]) == ("Teacher", "Bad")
    for row in (typical, example(SPEC)):
        assert None not in parse(row).values()


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_the_example_keeps_any_limits(one, other):
    low, high = sorted((one, other))
    spec = spec_with({"x": {"type": "numeric", "min": low}, "y": {"type": "numeric", "max": high}})
    assert parse(example(spec), schemas=build_schemas(spec))


def test_feedback_takes_a_class_or_a_number_as_the_task_says():
    prediction_id = "01980000-0000-7000-8000-000000000000"
    regression = spec_with({"x": {"type": "numeric"}}, task="regression", label={"column": "y"})
    for schemas, good, bad in ((SCHEMAS, "Good", "good"), (build_schemas(regression), 3, "3")):
        schemas.feedback.model_validate_json(json.dumps({"prediction_id": prediction_id, "actual": good}))
        with pytest.raises(ValidationError):
            schemas.feedback.model_validate_json(json.dumps({"prediction_id": prediction_id, "actual": bad}))


def test_another_feature_or_class_makes_other_requests_and_a_description_of_training_does_not():
    one = spec_with({"x": {"type": "numeric"}})
    assert same_requests(one, spec_with({"x": {"type": "numeric"}}, training={"search": {"trials": 3}}))
    assert not same_requests(one, spec_with({"x": {"type": "numeric", "max": 3}}))
    assert not same_requests(one, spec_with({"x": {"type": "numeric"}, "z": {"type": "text"}}))


def test_the_log_statement_has_a_place_for_every_column_in_the_tables_order():
    """The statement names no columns (see `db.log.writing`), so it relies on their order."""
    assert LOG.count("%s") == len(LOG_COLUMNS)
    identity = ("prediction_id", "model", "version", "role", "entity_id", "features")
    outcome = ("prediction", "confidence", "probabilities", "warnings", "latency_ms")
    assert (*identity, *outcome, "instance", "created_at", "logged_at") == LOG_COLUMNS


def test_features_in_another_order_are_other_requests():
    """A worker passes rows to a model in the column order with which it started."""
    columns = {"x": {"type": "numeric"}, "y": {"type": "numeric"}}
    assert not same_requests(spec_with(columns), spec_with(dict(reversed(columns.items()))))


@given(VALID)
def test_the_values_of_a_row_stand_in_the_order_of_the_model_file(row):
    content = json.loads(json.dumps(row))
    expected = [content[SPEC.entity], *(content.get(name) for name in SPEC.features.columns)]
    for order in (content, dict(reversed(content.items()))):
        assert list(parse(order).values()) == expected
