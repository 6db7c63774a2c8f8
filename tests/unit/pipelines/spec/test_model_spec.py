"""The model file: its keys, its defaults, and the errors for a file with mistakes."""

import copy
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spec import ModelSpec, find_spec, load_spec, margin_at, model_names
from utils.duration import parse_duration, show_duration
from utils.errors import SpecInvalid, UnknownModel
from utils.version import ROOT

SHORTEST = yaml.safe_load(
    """
    name: churn
    task: binary
    entity: customer
    label: {column: left, classes: ["No", "Yes"]}
    features:
      columns:
        tenure: {type: numeric}
        plan: {type: categorical}
    """
)


def file_with(**changes: Any) -> dict[str, Any]:
    """The shortest file with changed keys. For example, `label__classes=[…]` sets `label.classes`."""
    content = copy.deepcopy(SHORTEST)
    for path, value in changes.items():
        *section_names, key = path.split("__")
        section = content
        for name in section_names:
            section = section.setdefault(name, {})
        section[key] = value
    return content


@given(st.integers(0, 10**8))
def test_a_duration_that_was_shown_as_text_is_parsed_to_the_same_duration(seconds):
    assert parse_duration(show_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90d", timedelta(days=90)),
        ("6h", timedelta(hours=6)),
        ("10m", timedelta(minutes=10)),
        (" 3s ", timedelta(0, 3)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize("value", ["90", "d", "1.5h", "-3d", "3 d", "3w", "", 90, 1.5, True])
def test_other_values_are_rejected_as_durations(value):
    with pytest.raises(ValueError, match="90d"):
        parse_duration(value)


def test_all_keys_that_the_shortest_file_leaves_out_have_defaults():
    spec = ModelSpec.parse(SHORTEST, file="churn.yaml")
    assert spec.training.split.by == "entity"
    assert spec.training.search.metric == spec.gates.champion.metric == "roc_auc"
    assert not spec.timed
    assert spec.store.max_age is None


def test_data_with_event_times_is_split_by_time_by_default():
    spec = ModelSpec.parse(file_with(source__event_time="date"), file="churn.yaml")
    assert spec.timed
    assert spec.training.split.by == "time"


@pytest.mark.parametrize("name", model_names(ROOT / "models"))
def test_the_spec_of_a_shipped_model_is_the_same_after_it_was_written_as_json_and_read(name):
    spec = find_spec(ROOT / "models", name)
    read_spec = ModelSpec.parse(json.loads(json.dumps(spec.to_json())), file="spec.json")
    assert read_spec == spec
    assert read_spec.hash == spec.hash


def test_the_default_margin_is_a_share_if_the_metric_has_the_unit_of_the_label():
    regression = ModelSpec.parse(file_with(task="regression", label={"column": "left"}), file="churn.yaml")
    assert regression.gates.champion.margin == "3%"
    assert margin_at(regression.gates.champion.margin, 2_000.0) == pytest.approx(60)
    assert margin_at(5.0, 2_000.0) == 5.0
    binary = ModelSpec.parse(SHORTEST, file="churn.yaml")
    assert binary.gates.champion.margin == 0.005


def test_the_look_back_may_be_auto():
    spec = ModelSpec.parse(file_with(source__event_time="date", training__window="auto"), file="churn.yaml")
    assert spec.training.window == "auto"
    assert ModelSpec.parse(json.loads(json.dumps(spec.to_json())), file="spec.json") == spec


def test_keep_is_rejected_if_it_is_too_short_for_a_training_or_lacks_the_keys_it_needs():
    needed_keys = {"source__event_time": "date", "features__max_age": "30d"}
    assert ModelSpec.parse(file_with(**needed_keys, keep="400d"), file="churn.yaml").keep == timedelta(days=400)
    for wrong_keys, reason in (
        ({**needed_keys, "keep": "20d", "training__window": "60d"}, "at least training.window"),
        ({**needed_keys, "keep": "14d"}, "more than training.split"),
        ({"source__event_time": "date", "keep": "400d"}, "features.max_age"),
        ({"keep": "400d"}, "needs source.event_time"),
    ):
        with pytest.raises(SpecInvalid, match=reason):
            ModelSpec.parse(file_with(**wrong_keys), file="churn.yaml")


def test_the_shipped_model_credit_score_has_the_expected_features_and_classes(credit_score):
    assert list(credit_score.features.columns) == [
        *("age", "occupation", "annual_income", "monthly_inhand_salary", "num_bank_accounts", "num_credit_card"),
        *("interest_rate", "num_of_loan", "type_of_loan", "delay_from_due_date", "num_of_delayed_payment"),
        *("changed_credit_limit", "num_credit_inquiries", "credit_mix", "outstanding_debt"),
        *("credit_utilization_ratio", "credit_history_age", "payment_of_min_amount", "total_emi_per_month"),
        *("amount_invested_monthly", "payment_behaviour", "monthly_balance"),
    ]
    assert credit_score.label.classes == ("Poor", "Standard", "Good")
    assert credit_score.features.private == ("name", "ssn")


def test_a_key_with_its_default_value_does_not_change_the_hash():
    spec = ModelSpec.parse(SHORTEST, file="churn.yaml")
    with_default = ModelSpec.parse(file_with(gates__min_rows=500), file="churn.yaml")
    with_other_value = ModelSpec.parse(file_with(gates__min_rows=600), file="churn.yaml")
    assert with_default.hash == spec.hash != with_other_value.hash


def test_the_defaults_of_monitoring_and_retraining_are_not_part_of_the_hash():
    spec = ModelSpec.parse(SHORTEST, file="churn.yaml")
    assert (spec.monitoring.drift.breaches, spec.monitoring.drift.of) == (2, 3)
    assert spec.watched_metric == "roc_auc"
    assert spec.retrain.on == ("drift", "performance", "new_labels", "age")
    assert not {"monitoring", "retrain"} & set(spec.to_json())
    # The hash of the file before these keys existed.
    assert spec.hash == "d91f330f7bcd62bba3a318437f51386c70eccdef40561885793365463a191bdd"


@pytest.mark.parametrize(
    ("changes", "path", "expected"),
    [
        ({"labels": {}}, "labels", "is not a key"),
        ({"task": "ranking"}, "task", "multiclass"),
        ({"label__classes": ["No"]}, "label.classes", "exactly 2"),
        ({"label__classes": ["No", "No"]}, "label.classes", "twice"),
        ({"label__column": "Left?"}, "label.column", "pattern"),
        ({"label__maturity": "soon"}, "label.maturity", "90d"),
        ({"features__columns": {}}, "features.columns", "at least 1"),
        ({"features__columns__tenure": {"type": "number"}}, "features.columns.tenure", "numeric"),
        (
            {"features__columns__tenure": {"type": "numeric", "min": 2, "max": 1}},
            "features.columns.tenure",
            "above max",
        ),
        ({"features__columns__tenure": {"type": "numeric", "min": float("inf")}}, "tenure.min", "finite"),
        ({"features__columns__left": {"type": "numeric"}}, "features.columns", "label"),
        ({"features__columns__customer": {"type": "numeric"}}, "features.columns", "entity"),
        ({"features__columns__batch_id": {"type": "numeric"}}, "features.columns", "batch_id"),
        ({"features__private": ["plan"]}, "features.private", "plan"),
        ({"features__max_age": "9d"}, "features.max_age", "event_time"),
        ({"training__split": {"by": "time"}}, "training.split", "entity"),
        ({"training__split": {"by": "entity", "validation": 0.6, "test": 0.5}}, "training.split", "nothing to train"),
        ({"training__search__metric": "macro_f1"}, "training.search.metric", "roc_auc"),
        ({"training__search__space": {"depth": [9, 4]}}, "training.search.space", "above"),
        ({"label__classes": [False, True]}, "label.classes.0", "in quotes"),
        ({"gates__champion": {"margin": "a little"}}, "gates.champion.margin", "2%"),
        ({"gates__champion": {"margin": -1}}, "gates.champion.margin", "not negative"),
        ({"training__window": "auto"}, "training.window", "event_time"),
        ({"training__window": "long"}, "training.window", "90d"),
        ({"source__connection": "crm"}, "source.connection", "source.query"),
        ({"source__time_of_day": "hour"}, "source.time_of_day", "source.event_time"),
        ({"gates__minimum": {"rmse": 1}}, "gates.minimum.rmse", "roc_auc"),
        ({"gates__slices": {"columns": ["tenur"]}}, "gates.slices.columns", "tenur"),
        ({"monitoring__window": "0s"}, "monitoring.window", "at least 1s"),
        ({"monitoring__drift": {"psi": 0}}, "monitoring.drift.psi", "greater than 0"),
        ({"monitoring__drift": {"breaches": 4, "of": 3}}, "monitoring.drift", "nothing would ever be found"),
        ({"monitoring__performance": {"metric": "macro_f1"}}, "monitoring.performance.metric", "roc_auc"),
        ({"monitoring__performance": {"margin": -1}}, "monitoring.performance.margin", "not negative"),
        ({"retrain__on": ["rain"]}, "retrain.on", "new_labels"),
        ({"retrain__cooldown": "soon"}, "retrain.cooldown", "90d"),
        ({"retrain__per_week": -1}, "retrain.per_week", "greater than or equal to 0"),
        ({"spec_version": 2}, "spec_version", "1"),
    ],
)
def test_the_error_for_a_wrong_key_names_its_path_and_the_expected_value(changes, path, expected):
    with pytest.raises(SpecInvalid) as error:
        ModelSpec.parse(file_with(**changes), file="churn.yaml")
    assert str(error.value).startswith("churn.yaml: ")
    assert path in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("content", ["", "just text", "- a\n- b", "a: [1,", "\x00"])
def test_the_error_for_a_file_that_is_no_model_file_is_one_line(tmp_path: Path, content):
    path = tmp_path / "churn.yaml"
    path.write_text(content)
    with pytest.raises(SpecInvalid, match=r"churn\.yaml") as error:
        load_spec(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_named_after_its_model_is_rejected(tmp_path: Path):
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(SHORTEST))
    with pytest.raises(SpecInvalid, match=r"other\.yaml: name: expected the file's own name"):
        load_spec(path)


def test_the_error_for_an_unknown_model_lists_the_known_models():
    with pytest.raises(UnknownModel, match=r"'nothing'.*credit_score"):
        find_spec(ROOT / "models", "nothing")
