"""Idempotency keys of retried requests, and the prediction ids that are derived from them."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.requests.idempotency import FORM, NEWEST, OLDEST, parse_key
from db.log.prediction_ids import EPOCH, created_at, new_id, repeatable_id

NOW = datetime(2026, 6, 1, 12)
SECONDS = (NOW - EPOCH) // timedelta(seconds=1)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100)
TIMES = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1))


def test_a_key_has_the_time_of_the_first_attempt_and_a_name():
    key = parse_key(b"1780315200.125-4f0c2", now=NOW)
    assert key.first == datetime(2026, 6, 1, 12, 0, 0, 125_000)
    assert key.name == "4f0c2"


@given(NAMES, st.integers(-int(OLDEST.total_seconds()), int(NEWEST.total_seconds())))
def test_every_name_and_every_time_near_now_is_taken(name, late):
    key = parse_key(f"{SECONDS + late}-{name}".encode(), now=NOW)
    assert (key.name, key.first) == (name, EPOCH + timedelta(seconds=SECONDS + late))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a",
        b"17-",
        b"-name",
        b"1780315200",
        b"1780315200.125-with blank",
        b"1780315200-" + b"n" * 101,
        b"1780315200-n\xff",
        b"1780315300-after",
        b"1780314599-before",
        b"99999999999-far",
    ],
)
def test_any_other_key_is_refused_with_the_form_it_should_have(value):
    with pytest.raises(ValueError, match="Idempotency-Key must be SECONDS-NAME"):
        parse_key(value, now=NOW)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_valid_key_or_refused(value):
    try:
        key = parse_key(value, now=NOW)
    except ValueError:
        return
    assert FORM.fullmatch(value.decode())
    assert -NEWEST <= NOW - key.first <= OLDEST


@given(TIMES, st.text(), st.text())
def test_an_id_is_the_same_for_the_same_content_only_and_contains_its_time(first, content, other):
    prediction_id = repeatable_id(first, content)
    assert prediction_id == repeatable_id(first, content)
    assert (prediction_id == repeatable_id(first, other)) == (content == other)
    assert prediction_id.version == new_id(NOW).version == 7
    assert created_at(prediction_id) == first - timedelta(microseconds=first.microsecond % 1000)
