"""Rows as literals of one statement. No value can leave its literal."""

import re
from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymysql.err import ProgrammingError

from db import literals
from db.literals import statements
from db.log.prediction_ids import EPOCH, created_at, new_ids
from db.log.writing import LOG, LOG_AFTER, LOG_BEFORE
from utils.clock import utc_now

LITERAL = re.compile(r"_utf8mb4 x'((?:[0-9a-f]{2})*)'|(NULL)|([-+.0-9e]+)|'([-0-9 :.]{19,26})'")
VALUES = st.none() | st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.datetimes()


def parsed(row):
    """Parse a row in parentheses into values, like MariaDB does. A literal never contains a comma."""
    values: list[object] = []
    for part in row[1:-1].split(","):
        match = LITERAL.fullmatch(part)
        assert match, part
        text, null, number, moment = match.groups()
        if null:
            values.append(None)
        elif number:
            values.append(float(number) if set(number) & set(".e") else int(number))
        else:
            values.append(bytes.fromhex(text).decode() if text is not None else datetime.fromisoformat(moment))
    return values


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_parsed_row_equals_the_original(row):
    (statement,) = statements("<", [row], ">")
    assert statement.isascii()
    assert parsed(statement[1:-1]) == row


def test_a_repeated_text_and_an_equal_number_keep_their_types():
    (statement,) = statements("", [("1", 1, "1"), (1.0, "1", 1)], "")
    assert statement == "(_utf8mb4 x'31',1,_utf8mb4 x'31'),(1.0,_utf8mb4 x'31',1)"


def test_a_long_statement_becomes_several_and_no_row_is_lost(monkeypatch):
    monkeypatch.setattr(literals, "LONGEST", 100)
    rows = [(number, "x" * 20) for number in range(10)]
    parts = list(statements("a", rows, "z"))
    assert len(parts) > 1
    assert "".join(each[1:-1] + "," for each in parts) == "".join(next(statements("", [row], "")) + "," for row in rows)
    assert list(statements("a", [], "z")) == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_mariadb_does_not_know_is_refused_as_the_driver_refuses_it(wrong):
    with pytest.raises(ProgrammingError):
        list(statements("", [(wrong,)], ""))


@pytest.mark.parametrize("wrong", [b"x", ["x"], True, UUID(int=1)])
def test_a_value_of_another_type_is_refused(wrong):
    with pytest.raises(TypeError):
        list(statements("", [(wrong,)], ""))


def test_the_statement_of_the_log_is_cut_at_its_values():
    assert LOG.startswith(LOG_BEFORE + "(%s")
    assert LOG_AFTER == " ON DUPLICATE KEY UPDATE prediction_id = VALUES(prediction_id)"


def test_many_new_ids_are_uuids_of_their_millisecond():
    now = utc_now()
    ids = new_ids(now, 2_000)
    assert len(set(ids)) == 2_000
    for each in map(UUID, ids):
        assert (each.version, each.variant) == (7, "specified in RFC 4122")
        assert created_at(each) == EPOCH + (now - EPOCH) // (step := created_at(UUID(int=1 << 80)) - EPOCH) * step
    assert {each[19] for each in ids} == set("89ab")
    assert new_ids(now, 0) == []
