"""The errors: the tree in the docstring is complete, and each message is one line with its facts."""

import inspect
from datetime import datetime

import pytest

from utils import errors

EXAMPLES = [
    (errors.SettingMissing(variable="EVERGREEN_X", needed_for="this"), ["EVERGREEN_X", "this", ".env"]),
    (errors.SpecInvalid(file="a.yaml", problems=[("label.column", "is missing")]), ["a.yaml", "label.column"]),
    (errors.UnknownModel(model="x", available=["b", "a"]), ["'x'", "a, b"]),
    (errors.Unreachable(service="MariaDB", address="h:1"), ["MariaDB", "h:1", "make status"]),
    (errors.AccessDenied(service="MariaDB", address="h:1", user="u"), ["'u'", "password"]),
    (errors.MissingColumns(source="f.csv", missing=["age"], available=["b"]), ["f.csv", "age", "source.map"]),
    (
        errors.RowsRefused(source="f", refused=1, first=(7, "age", "x", "is no number"), rows=9),
        ["1 of 9", "line 7", "'x'"],
    ),
    (
        errors.RowContradicts(source="f", entity="e", event_time=datetime(2026, 1, 2), known_at=datetime(2026, 1, 3)),
        ["entity 'e'", "2026-01-03"],
    ),
    (errors.EmptyWindow(model="m", start=None, end=datetime(2026, 1, 2)), ["the beginning", "2026-01-02"]),
    (
        errors.ValidationFailed(model="m", violations=["age below 0"], report="h/1"),
        ["age below 0", "h/1", "validation"],
    ),
    (errors.NotFound(what="version 9", where="MLflow"), ["version 9", "MLflow"]),
    (errors.UnknownEntities(model="m", entity="customer", unknown=[(0, "x"), (2, "y")]), ["customer 'x', 'y'", "m"]),
    (errors.HeldBack(what="the partitions of t", reason="a reader"), ["partitions of t", "a reader"]),
    (errors.NothingToDo(model="m", reason="no candidate"), ["no candidate"]),
    (errors.DeploymentFailed(model="m", version=2, reason="late", serving=1), ["version 2", "version 1 serves"]),
    (errors.IntegrityError(what="file", expected="a", found="b"), ["a", "b"]),
    (errors.GaveUp(what="MLflow", waited=150, still=60, state="a\nb"), ["MLflow", "150 s", "60 s", "a | b"]),
]


@pytest.mark.parametrize(("error", "facts"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_message_is_one_line_with_the_facts(error, facts):
    assert isinstance(error, errors.EvergreenError)
    assert "\n" not in str(error)
    for fact in facts:
        assert fact in str(error)
    assert error.exit_code > 0


def test_a_line_for_logs_has_place_and_reason_but_no_value():
    refused = errors.RowsRefused(source="f", refused=1, first=(7, "age", "x1y", "is no number"), rows=9)
    assert "first: line 7, age: is no number" in refused.without_values
    contradicts = errors.RowContradicts(
        source="f", entity="x1y", event_time=datetime(2026, 1, 2), known_at=datetime(2026, 1, 3)
    )
    assert "an entity at 2026-01-02" in contradicts.without_values
    unknown = errors.UnknownEntities(model="m", entity="customer", unknown=[(0, "x1y")])
    for error in (refused, contradicts, unknown):
        assert "x1y" in str(error)
        assert "x1y" not in error.without_values
    assert errors.NothingToDo(model="m", reason="r").without_values == "m: nothing to do: r"


def test_a_long_list_is_cut_short():
    message = str(errors.MissingColumns(source="f", missing=[f"c{n}" for n in range(20)], available=["x"]))
    assert "c7 and 12 more" in message
    assert "c8" not in message


def test_the_tree_in_the_docstring_names_every_error():
    tree = inspect.getdoc(errors) or ""
    classes = [
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert classes
    assert [name for name in classes if name not in tree] == []
