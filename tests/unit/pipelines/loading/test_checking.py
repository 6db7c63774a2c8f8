"""Checks of rows against the model file."""

from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from pipelines.loading.checking import check
from pipelines.loading.columns import Columns
from pipelines.spec import ModelSpec
from utils.errors import DataRefused, MissingColumns

SPEC = ModelSpec.parse(
    {
        "name": "loans",
        "task": "binary",
        "entity": "customer",
        "source": {"event_time": "date", "map": {"ID": "customer", "Secret": "ssn"}},
        "label": {"column": "paid", "classes": ["No", "Yes"]},
        "features": {
            "columns": {
                "amount": {"type": "numeric", "min": 0, "max": 100},
                "kind": {"type": "categorical", "values": ["a", "b"]},
                "note": {"type": "text"},
            },
            "private": ["name", "ssn"],
        },
    },
    file="loans.yaml",
)
GOOD = {"ID": "c1", "date": "2026-01-02", "amount": "5", "kind": "a", "note": "x", "paid": "Yes"}


def check_rows(*rows: dict[str, object]) -> Any:
    """The result of `check`. It is typed Any, because both of its tables are present."""
    table = pa.Table.from_pylist([GOOD | row for row in rows])
    columns = Columns.of(table.column_names, spec=SPEC, source="f.csv")
    return check(table.select(list(columns.taken)), spec=SPEC, columns=columns, lines=range(2, 2 + table.num_rows))


@pytest.mark.parametrize(
    ("wrong", "column", "reason"),
    [
        ({"amount": "5 USD"}, "amount", "is not a number"),
        ({"amount": "nan"}, "amount", "is not a number"),
        ({"amount": "1,5"}, "amount", "is not a number"),
        ({"amount": "1,234"}, "amount", "may be thousands or a fraction"),
        ({"amount": "1.234,5"}, "amount", "is not a number"),
        ({"amount": "inf"}, "amount", "is not a number"),
        ({"amount": "-Infinity"}, "amount", "is not a number"),
        ({"amount": "0x10"}, "amount", "is not a number"),
        ({"amount": "1e400"}, "amount", "finite"),
        ({"amount": "-0.1"}, "amount", "below the minimum 0"),
        ({"amount": "100.5"}, "amount", "above the maximum 100"),
        ({"kind": "c"}, "kind", "is not one of a, b"),
        ({"kind": "A"}, "kind", "is not one of a, b"),
        ({"note": "n" * 4001}, "note", "longer than 4000"),
        ({"paid": "Maybe"}, "paid", "is not one of No, Yes"),
        ({"ID": "c" * 65}, "customer", "longer than 64"),
        ({"ID": ""}, "customer", "is missing"),
        ({"ID": "  "}, "customer", "is missing"),
        ({"date": ""}, "date", "is missing"),
        ({"date": "2026-02-30"}, "date", "is not a time"),
        ({"date": "02/01/2026"}, "date", "is not a time"),
        ({"date": "yesterday"}, "date", "is not a time"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_column_and_reason(wrong, column, reason):
    result = check_rows({"ID": "c0"}, wrong)
    assert result.features.num_rows == result.labels.num_rows == 1
    assert result.features["entity_id"].to_pylist() == ["c0"]
    ((line, name, value, text),) = result.rejects
    assert (line, name) == (3, column)
    assert value == str(next(iter(wrong.values())))[:60] or not value
    assert reason in text


def test_each_wrong_row_is_counted_once():
    assert len(check_rows({"amount": "x", "kind": "z"}, {"ID": "c2"}, {"ID": "c3", "amount": "y"}).rejects) == 2


@pytest.mark.parametrize("blank", ["", "   ", None])
def test_blanks_are_missing_values(blank):
    row = check_rows({"amount": blank, "kind": blank, "note": blank}).features.to_pylist()[0]
    assert (row["amount"], row["kind"], row["note"]) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "number"), [("1,234.5", 1234.5), ("-1,234,567", -1234567.0), (" 12,345.00 ", 12345.0)]
)
def test_commas_between_thousands_are_read_where_they_are_unambiguous(text, number):
    columns = {"amount": {"type": "numeric"}}
    spec = ModelSpec.parse({**SPEC.to_json(), "features": {"columns": columns}}, file="loans.yaml")
    table = pa.table({"ID": ["c1"], "date": ["2026-01-02"], "amount": [text]})
    file_columns = Columns.of(table.column_names, spec=spec, source="f.csv")
    result = check(table, spec=spec, columns=file_columns, lines=[2]).features
    assert result is not None
    assert result["amount"].to_pylist() == [number]


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinity_in_a_column_of_numbers_is_refused(value):
    (reject,) = check_rows({"amount": value}).rejects
    assert reject[1:] == ("amount", str(value), "is not a finite number")


def test_nan_in_a_column_of_numbers_is_a_missing_value():
    assert check_rows({"amount": float("nan")}).features["amount"].to_pylist() == [None]


@pytest.mark.parametrize("number", ["1e1", "+10", " 10 ", "10.", "10.0", 10, 10.0])
def test_numbers_are_read_in_their_usual_spellings(number):
    assert check_rows({"amount": number}).features["amount"].to_pylist() == [10.0]


@pytest.mark.parametrize(
    ("time", "utc"),
    [
        ("2026-01-02", datetime(2026, 1, 2)),
        ("2026-01-02 03:04:05.000006", datetime(2026, 1, 2, 3, 4, 5, 6)),
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5)),
        (datetime(2026, 1, 2), datetime(2026, 1, 2)),
    ],
)
def test_times_are_utc_unless_they_carry_an_offset(time, utc):
    assert check_rows({"date": time}).features["event_time"].to_pylist() == [utc]


def test_times_with_and_without_an_offset_may_stand_in_one_file():
    result = check_rows({"date": "2026-01-02"}, {"date": "2026-01-02T00:00:00-01:00"}).features
    assert result["event_time"].to_pylist() == [datetime(2026, 1, 2), datetime(2026, 1, 2, 1)]


def test_the_availability_time_is_the_event_time_unless_the_file_says_otherwise():
    result = check_rows({}).features
    assert result["available_at"].to_pylist() == result["event_time"].to_pylist()


def test_a_row_without_a_label_gives_features_only():
    result = check_rows({"paid": ""}, {"ID": "c2"})
    assert (result.features.num_rows, result.labels.num_rows) == (2, 1)


def test_a_repeated_row_is_taken_once():
    assert check_rows({}, {}, {"ID": "c2"}).features.num_rows == 2


def test_a_repeated_row_with_other_values_is_refused():
    result = check_rows({"ID": "c2"}, {}, {"amount": "6"})
    assert [reject[0] for reject in result.rejects] == [3, 4]
    assert "other values" in result.rejects[0][3]
    assert result.features["entity_id"].to_pylist() == ["c2"]


def test_rows_for_one_time_with_different_values_are_all_refused():
    result = check_rows({"amount": "bad"}, {}, {}, {"amount": "6"}, {"ID": "c2"})
    assert [reject[0] for reject in result.rejects] == [2, 3, 4, 5]
    assert result.features["entity_id"].to_pylist() == ["c2"]


def test_private_columns_are_not_read():
    columns = Columns.of([*GOOD, "name", "ssn", "Secret", "more"], spec=SPEC, source="f.csv")
    assert sorted(columns.taken) == sorted(GOOD)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["id", "DATE", "Amount", "KIND", " note "], ["customer", "date", "amount", "kind", "note"]),
        (["Customer", "date", "amount", "kind", "note"], ["customer", "date", "amount", "kind", "note"]),
        (["ID", "date", "amount", "AMOUNT", "kind", "note"], ["customer", "date", "amount", "kind", "note"]),
    ],
)
def test_names_in_another_case_are_found(names, taken):
    assert list(Columns.of(names, spec=SPEC, source="f").taken.values()) == taken


def test_a_name_that_matches_in_two_other_cases_is_missing():
    with pytest.raises(MissingColumns, match="missing columns amount"):
        Columns.of(["ID", "date", "Amount", "AMOUNT", "kind", "note"], spec=SPEC, source="f")


def test_a_private_column_is_private_in_any_case():
    spec = ModelSpec.parse({**SPEC.to_json(), "source": {"event_time": "date", "map": {"SSN": "kind"}}}, file="f.yaml")
    with pytest.raises(MissingColumns, match="missing columns kind"):
        Columns.of(["customer", "date", "amount", "Ssn", "SSN", "note"], spec=spec, source="f")


def test_two_columns_that_would_have_one_name_are_refused():
    with pytest.raises(DataRefused, match="columns ID, customer would have the same name"):
        Columns.of(["ID", "customer", "date", "amount", "kind", "note"], spec=SPEC, source="f")


def test_a_first_line_without_a_known_name_is_not_quoted_because_it_may_be_a_row_of_data():
    with pytest.raises(MissingColumns) as error:
        Columns.of(["c1", "000-12-3456"], spec=SPEC, source="f")
    assert "000-12-3456" not in str(error.value)


def test_a_lag_sets_the_availability_time():
    spec = ModelSpec.parse({**SPEC.to_json(), "source": {"event_time": "date", "available_at": "+2d"}}, file="f.yaml")
    table = pa.table({"customer": ["c1"], "date": ["2026-01-02"], "paid": ["Yes"]})
    columns = Columns.of(table.column_names, spec=spec, source="f")
    result = check(table, spec=spec, columns=columns, lines=[2]).labels
    assert result is not None
    (row,) = result.to_pylist()
    assert (row["event_time"], row["available_at"]) == (datetime(2026, 1, 2), datetime(2026, 1, 4))


@pytest.mark.parametrize("values", [[[1.0]], [{"a": 1}]])
def test_a_column_of_a_type_that_holds_no_values_is_refused_by_its_name(values):
    table = pa.table({"ID": ["c1"], "date": ["2026-01-02"], "amount": values, "kind": ["a"], "note": ["x"]})
    columns = Columns.of(table.column_names, spec=SPEC, source="f.parquet")
    with pytest.raises(DataRefused, match=r"f\.parquet: column amount holds .*: expected numbers, text or times"):
        check(table, spec=SPEC, columns=columns, lines=[1])


def test_features_and_label_may_come_in_separate_files():
    assert Columns.of(["ID", "date", "paid"], spec=SPEC, source="f").features is False
    assert Columns.of(["ID", "date", "amount", "kind", "note"], spec=SPEC, source="f").label is False


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["date", "amount", "kind", "note", "paid"], "customer"),
        (["ID", "amount", "kind", "note", "paid"], "date"),
        (["ID", "date", "amount", "paid"], "kind, note"),
        (["ID", "date"], "amount, kind, note"),
    ],
)
def test_missing_columns_are_named(names, missing):
    with pytest.raises(MissingColumns, match=f"missing columns {missing}; it has"):
        Columns.of(names, spec=SPEC, source="f.csv")


HOURLY = ModelSpec.parse(
    {
        "name": "rentals",
        "task": "regression",
        "entity": "day",
        "source": {"event_time": "day", "time_of_day": "hr"},
        "label": {"column": "rented"},
        "features": {"columns": {"hr": {"type": "numeric"}}},
    },
    file="rentals.yaml",
)


def hourly(day: object, hr: object) -> Any:
    table = pa.Table.from_pylist([{"day": day, "hr": hr, "rented": "3"}])
    columns = Columns.of(table.column_names, spec=HOURLY, source="f.csv")
    return check(table.select(list(columns.taken)), spec=HOURLY, columns=columns, lines=range(2, 2 + table.num_rows))


@pytest.mark.parametrize(
    ("hour", "expected"), [("0", (0, 0)), ("07", (7, 0)), ("23", (23, 0)), (" 5", (5, 0)), (5, (5, 0)), (5.0, (5, 0))]
)
def test_date_and_hour_of_two_columns_make_one_time_and_the_columns_stay_features(
    hour: object, expected: tuple[int, int]
) -> None:
    result = hourly("2026-01-02", hour)
    assert result.rejects == []
    assert result.features is not None
    row = result.features.to_pylist()[0]
    assert (row["entity_id"], row["event_time"], row["hr"]) == (
        "2026-01-02",
        datetime(2026, 1, 2, *expected),
        expected[0],
    )
    assert row["available_at"] == row["event_time"]


def test_a_clock_time_may_stand_in_the_second_column() -> None:
    spec = ModelSpec.parse({**HOURLY.to_json(), "features": {"columns": {"x": {"type": "numeric"}}}}, file="r.yaml")
    table = pa.Table.from_pylist([{"day": "2026-01-02", "hr": "17:45:30", "x": "1", "rented": "3"}])
    columns = Columns.of(table.column_names, spec=spec, source="f.csv")
    result = check(table, spec=spec, columns=columns, lines=range(2, 2 + table.num_rows))
    assert result.labels is not None
    assert result.labels.to_pylist()[0]["event_time"] == datetime(2026, 1, 2, 17, 45, 30)


@pytest.mark.parametrize(
    ("day", "hr", "column", "reason"),
    [
        ("2026-01-02", "24", "hr", "hour from 0 to 23"),
        ("2026-01-02", "", "hr", "is missing"),
        ("2026-01-02", "noon", "hr", "like 17:30"),
        ("2026-01-02T05:00", "5", "day", "time of day already"),
        ("", "5", "day", "is missing"),
    ],
)
def test_a_wrong_time_of_day_is_refused_with_its_column(day: str, hr: str, column: str, reason: str) -> None:
    (reject,) = hourly(day, hr).rejects
    assert reject[1] == column
    assert reason in reject[3]
