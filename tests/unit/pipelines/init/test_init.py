"""The first model file that `evergreen init` guesses: its content, and that the rows behind it pass its rules."""

import csv
import random
import re
import secrets
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipelines.init.column_facts import model_names
from pipelines.init.draft import Asked
from pipelines.init.sample import sample_of
from pipelines.init.write import refused, write_model_file
from pipelines.spec import ModelSpec, load_spec
from utils.errors import DataRefused, NotFound, SpecInvalid

ROWS = 400


def rows(**columns: Any) -> pd.DataFrame:
    """Customers with a random label and `columns`, each a function of a random generator and the row's number."""
    chance = random.Random(5)
    values = {name: [value_of(chance, n) for n in range(ROWS)] for name, value_of in columns.items()}
    customers = [f"C{n:05}" for n in range(ROWS)]
    return pd.DataFrame({"customer": customers, **values, "label": [chance.choice(["no", "yes"]) for _ in customers]})


def guess(frame: pd.DataFrame, folder: Path, *, suffix: str = ".csv", **answers: Any) -> ModelSpec:
    """Write the model file for `frame` and return its spec, after a check that it refuses no row of `frame`."""
    path = folder / f"rows{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    result = write_model_file(path, model="guessed", folder=folder, asked=Asked(**answers), force=True)
    spec = load_spec(result.path)
    assert refused(sample_of(path), spec) == (0, "")
    return spec


def comment(folder: Path, name: str) -> str:
    """The comment beside a column in the file."""
    (line,) = [line for line in (folder / "guessed.yaml").read_text().splitlines() if re.match(rf"\W*{name}\b", line)]
    return line.partition("    # ")[2] if line.strip()[0] != "#" else line.strip()[2:].partition("    # ")[2]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_types_ranges_and_lists_of_values_come_from_the_rows_with_a_comment(suffix: str, tmp_path: Path) -> None:
    frame = rows(
        income=lambda chance, n: None if n < 11 else round(chance.uniform(18, 900), 2),
        balance=lambda chance, n: chance.uniform(-5, 5),
        children=lambda chance, n: n % 5,
        senior=lambda chance, n: int(chance.random() < 0.3),
        plan=lambda chance, n: ("Basic", "No", "yes")[n % 3],
        city=lambda chance, n: f"city {chance.randrange(40)}",
        note=lambda chance, n: f"called on day {n} and said that it was {chance.random():.5f} of the price",
    )
    columns = guess(frame, tmp_path, suffix=suffix, label="label", entity="customer").to_json()["features"]["columns"]
    assert columns == {
        "income": {"type": "numeric", "min": 0},
        "balance": {"type": "numeric"},
        "children": {"type": "numeric", "min": 0},
        "senior": {"type": "numeric", "min": 0, "max": 1},
        "plan": {"type": "categorical", "values": ["Basic", "No", "yes"]},
        "city": {"type": "categorical"},
        "note": {"type": "text"},
    }
    assert "11 of 400 blank" in comment(tmp_path, "income")
    assert comment(tmp_path, "children") == "5 different whole numbers from 0 to 4, never negative"
    assert comment(tmp_path, "plan") == "3 distinct values in 400 rows, the rarest in 133"


def test_identifying_columns_are_private_and_their_values_are_not_in_the_file(tmp_path: Path) -> None:
    frame = rows(
        **{
            "Last Name": lambda chance, n: f"Surname{chance.randrange(90)}",
            "contact": lambda chance, n: f"someone{n}@example.org",
            "Taxpayer": lambda chance, n: f"{chance.randrange(100, 999)}-{chance.randrange(10, 99)}-{n + 1000}",
            "token": lambda chance, n: f"k{chance.randrange(10**9)}",
            "PhoneService": lambda chance, n: ("No", "Yes")[n % 2],
        }
    )
    spec = guess(frame, tmp_path, label="label", entity="customer")
    assert set(spec.features.private) == {"Last Name", "contact", "Taxpayer", "token"}
    assert set(spec.features.columns) == {"phone_service"}
    content = (tmp_path / "guessed.yaml").read_text()
    assert not [value for name in spec.features.private for value in frame[name] if value in content]


def test_columns_that_add_up_to_the_label_or_predict_it_alone_are_comments(tmp_path: Path) -> None:
    frame = rows(
        casual=lambda chance, n: chance.randrange(50),
        registered=lambda chance, n: chance.randrange(400),
        temperature=lambda chance, n: chance.gauss(10, 5),
    )
    total = frame.assign(total=frame["casual"] + frame["registered"]).drop(columns="label")
    spec = guess(total, tmp_path, label="total")
    assert spec.task == "regression"
    assert set(spec.features.columns) == {"temperature"}
    assert comment(tmp_path, "casual").startswith("left out: casual and registered add up to the label: a leak")
    leaking = frame.assign(left_on=frame["label"].map({"yes": "gone", "no": "here"}), churned=frame["label"])
    spec = guess(leaking.drop(columns="label"), tmp_path, label="churned")
    assert set(spec.features.columns) == {"casual", "registered", "temperature"}
    assert comment(tmp_path, "left_on").startswith("left out: tells 100.0% of churned alone: a leak")


def test_columns_without_content_and_numbers_of_rows_are_comments(tmp_path: Path) -> None:
    frame = rows(
        empty=lambda chance, n: None,
        same=lambda chance, n: "x",
        row=lambda chance, n: n + 7,
        zip=lambda chance, n: f"{chance.randrange(40):05}",
        signed_up=lambda chance, n: date(2026, 1, 1) + timedelta(days=n % 50) if n else None,
        mostly=lambda chance, n: "NA" if n < 9 else n % 100,
    )
    spec = guess(frame, tmp_path, entity="customer")
    assert spec.columns_of("categorical") == ["zip", "mostly"]
    assert len(spec.features.columns) == 2
    assert comment(tmp_path, "same") == "left out: the same value in every row"
    assert "numbers but for NA" in comment(tmp_path, "mostly")
    assert "times, 2026-01-01" in comment(tmp_path, "signed_up")


def test_types_of_parquet_are_read_and_columns_of_unusable_types_are_comments(tmp_path: Path) -> None:
    numbers = [Decimal(n % 50) / 4 for n in range(ROWS)]
    table = pa.table(
        {
            "id": pa.array(range(ROWS)),
            "at": pa.array([datetime(2026, 1, 1) + timedelta(hours=n) for n in range(ROWS)], pa.timestamp("us", "UTC")),
            "flag": pa.array([n % 3 == 0 for n in range(ROWS)]),
            "price": pa.array(numbers, pa.decimal128(10, 2)),
            "coded": pa.array(["x", "y"] * (ROWS // 2)).dictionary_encode(),
            "gaps": pa.array([None if n % 9 == 0 else n % 7 for n in range(ROWS)], pa.int8()),
            "nan": pa.array([float("nan") if n % 9 == 0 else -n / 7 for n in range(ROWS)], pa.float32()),
            "list": pa.array([[1, 2]] * ROWS),
            "wait": pa.array([timedelta(seconds=n) for n in range(ROWS)]),
            "bytes": pa.array([b"x"] * ROWS),
            "nothing": pa.nulls(ROWS),
            "late": pa.array([n % 2 == 0 for n in range(ROWS)]),
        }
    )
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    result = write_model_file(tmp_path / "rows.parquet", model="guessed", folder=tmp_path, asked=Asked(label="late"))
    spec = load_spec(result.path)
    assert refused(sample_of(tmp_path / "rows.parquet"), spec) == (0, "")
    assert (spec.entity, spec.source.event_time, spec.label.classes) == ("id", "at", ("false", "true"))
    assert {name: feature.type for name, feature in spec.features.columns.items()} == {
        "flag": "categorical",
        "price": "numeric",
        "coded": "categorical",
        "gaps": "numeric",
        "nan": "numeric",
    }
    assert result.summary["left_out"] == ["list", "wait", "bytes", "nothing"]
    assert "45 of 400 blank" in comment(tmp_path, "nan")


def timed(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    start = datetime(2025, 1, 1)
    return frame.assign(day=[str((start + timedelta(days=n // 2)).date()) for n in range(len(frame))], **columns)


def test_date_and_hour_in_two_columns_make_one_time_and_a_split_by_it(tmp_path: Path) -> None:
    frame = timed(rows(amount=lambda chance, n: chance.random()), hr=[n % 2 * 7 for n in range(ROWS)])
    spec = guess(frame.drop(columns="customer").assign(instant=range(ROWS)), tmp_path)
    assert (spec.source.event_time, spec.source.time_of_day, spec.entity) == ("day", "hr", "instant")
    assert spec.training.split.by == "time"
    assert "hr" in spec.features.columns


def test_an_entity_with_several_rows_is_recognised_by_its_name(tmp_path: Path) -> None:
    frame = timed(rows(amount=lambda chance, n: chance.random())).drop(columns="customer")
    spec = guess(frame.assign(ShopID=[f"s{n % 4}" for n in range(ROWS)]), tmp_path)
    assert (spec.entity, spec.source.map["ShopID"]) == ("shop_id", "shop_id")


@pytest.mark.parametrize(
    ("frame", "option", "candidates"),
    [
        (rows(a=lambda chance, n: n % 7).rename(columns={"label": "b"}), "--label", "customer, a, b"),
        (rows(a=lambda chance, n: n % 7, other=lambda chance, n: f"o{n}"), "--entity", "customer, other"),
        (timed(rows(a=lambda chance, n: n % 7), due=["2026-01-01"] * ROWS), "--event-time", "day, due, none"),
    ],
    ids=["label", "entity", "time"],
)
def test_the_error_for_an_ambiguous_file_names_an_option_in_one_line_and_nothing_is_written(
    frame: pd.DataFrame, option: str, candidates: str, tmp_path: Path
) -> None:
    with pytest.raises(DataRefused) as error:
        guess(frame, tmp_path)
    assert str(error.value).endswith(f"by {option}: {candidates}")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize(
    "answers",
    [{"label": "nosuch"}, {"event_time": "a"}, {"task": "regression"}, {"task": "multiclass"}, {"label": "same"}],
    ids=str,
)
def test_an_impossible_answer_is_refused(answers: dict[str, str], tmp_path: Path) -> None:
    frame = rows(a=lambda chance, n: n % 7, same=lambda chance, n: 1)
    with pytest.raises(DataRefused, match=r"^rows\.csv: "):
        guess(frame, tmp_path, entity="customer", **answers)


def test_an_existing_model_file_is_overwritten_only_by_force(tmp_path: Path) -> None:
    rows(a=lambda chance, n: n % 7).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(SpecInvalid, match=r"mine\.yaml: the file: is there already: --force"):
        write_model_file(tmp_path / "rows.csv", model="mine", folder=tmp_path, asked=Asked())
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    write_model_file(tmp_path / "rows.csv", model="mine", folder=tmp_path, asked=Asked(), force=True)
    assert load_spec(tmp_path / "mine.yaml").name == "mine"
    with pytest.raises(SpecInvalid, match="small letter"):
        write_model_file(tmp_path / "rows.csv", model="../Mine", folder=tmp_path, asked=Asked())


@pytest.mark.parametrize("content", ["", "a,b\n"])
def test_a_file_without_rows_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataRefused, match=r"rows\.csv"):
        write_model_file(tmp_path / "rows.csv", model="m", folder=tmp_path, asked=Asked())
    with pytest.raises(NotFound):
        write_model_file(tmp_path / "none.csv", model="m", folder=tmp_path, asked=Asked())


def test_only_the_first_rows_are_read_and_the_sample_says_so(tmp_path: Path) -> None:
    rows(a=lambda chance, n: n % 7).to_csv(tmp_path / "rows.csv", index=False)
    assert sample_of(tmp_path / "rows.csv", rows=100).said == "the first 100 rows"
    assert sample_of(tmp_path / "rows.csv", rows=ROWS).said == "all 400 rows"


NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60),
    st.sampled_from(["True", "no", "on", "Y", "null", "~", "1e3", "0"]),  # words that YAML reads as other types
)


@given(st.lists(NAMES, min_size=1, max_size=30, unique=True))
def test_every_name_of_a_file_becomes_a_valid_and_unique_name_of_the_model_file(names: list[str]) -> None:
    new_names = model_names(names)
    assert list(new_names) == names
    assert len(set(new_names.values())) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,47}", new) for new in new_names.values())


VALUES: list[st.SearchStrategy[str]] = [
    st.integers(-(10**6), 10**6).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.sampled_from(["No", "yes", "null", "1e3", "0", "~", "- a", "a: b", "#", '"', "007"]),
    st.dates(date(1900, 1, 1)).map(str),
    st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(lambda moment: f"{moment:%Y-%m-%dT%H:%M:%SZ}"),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200),
    st.from_regex(r"[a-z]{1,8}@[a-z]{1,8}\.com", fullmatch=True),
]


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_for_any_columns_the_new_file_parses_and_takes_every_row(data: st.DataObject, tmp_path: Path) -> None:
    count = data.draw(st.integers(4, 40))
    names = data.draw(st.lists(NAMES, min_size=1, max_size=6, unique_by=str.lower))
    assume(not {name.lower() for name in names} & {"the answer", "thing id", "none"})
    columns: dict[str, list[str]] = {}
    for name in names:
        value, blanks = data.draw(st.sampled_from(VALUES)), data.draw(st.booleans())
        cell = st.one_of(st.just(""), value) if blanks else value
        columns[name] = data.draw(st.lists(cell, min_size=count, max_size=count))
    columns |= {"thing id": [f"t{n}" for n in range(count)], "the answer": [str(n % 3) for n in range(count)]}
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    answers = Asked(label="the answer", entity="thing id", event_time="none")
    try:
        result = write_model_file(path, model="guessed", folder=tmp_path, asked=answers, force=True)
    except DataRefused as error:
        assert "no column is left to learn from" in str(error)  # noqa: PT017  both outcomes are right
        return
    assert refused(sample_of(path), load_spec(result.path)) == (0, "")
    parts = (result.summary[part] for part in ("features", "private", "left_out"))
    assert {name for part in parts for name in part} == set(names)


def test_a_file_with_secrets_as_its_names_is_plain_yaml(tmp_path: Path) -> None:
    strange = f"a: {{b}} # {secrets.token_hex(2)}, 'c' \"d\""
    frame = rows(amount=lambda chance, n: chance.random()).assign(**{strange: range(ROWS)})
    spec = guess(frame.assign(**{strange: [n % 9 for n in range(ROWS)]}), tmp_path)
    assert strange in spec.source.map
    assert yaml.safe_load((tmp_path / "guessed.yaml").read_text())["source"]["map"][strange]
