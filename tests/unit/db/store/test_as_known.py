"""The point-in-time join against a simple reference implementation."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from db.store.point_in_time import as_known, newest_versions

TIME = st.integers(0, 12)  # few, so that ties are common
ENTITY = st.integers(0, 3)
FEATURES = st.lists(st.tuples(ENTITY, TIME, TIME), max_size=25, unique=True)
LABELS = st.lists(st.tuples(ENTITY, TIME), max_size=25)


def columns(rows: list[tuple[int, ...]], count: int) -> list[np.ndarray]:
    return list(np.array(rows, dtype=np.int64).reshape(-1, count).T)


def reference(features: list[tuple[int, int, int]], entity: int, moment: int, max_age: int | None) -> int:
    """The index of the newest row of `entity` that was available at `moment` and within `max_age`, or -1."""
    usable = [
        (event, available, index)
        for index, (owner, event, available) in enumerate(features)
        if owner == entity and event <= moment and available <= moment and moment - event <= (max_age or moment)
    ]
    return max(usable)[2] if usable else -1


@settings(max_examples=500)
@given(FEATURES, LABELS, st.one_of(st.none(), st.integers(1, 8)))
def test_every_label_gets_the_newest_row_that_was_known_at_its_time(features, labels, max_age):
    indexes = as_known(*columns(features, 3), *columns(labels, 2), max_age=max_age)
    assert indexes.tolist() == [reference(features, entity, moment, max_age) for entity, moment in labels]


@settings(max_examples=200)
@given(st.lists(st.tuples(ENTITY, TIME, TIME), max_size=25, unique=True))
def test_the_version_of_a_label_that_became_available_last_counts(labels):
    rows = [labels[index] for index in newest_versions(*columns(labels, 3))]
    newest = {(entity, event): 0 for entity, event, _ in labels}
    for entity, event, available in labels:
        newest[entity, event] = max(newest[entity, event], available)
    assert rows == sorted((entity, event, available) for (entity, event), available in newest.items())


def test_a_row_that_arrives_late_never_reaches_an_earlier_label():
    indexes = as_known(*columns([(1, 10, 10), (1, 20, 50)], 3), *columns([(1, 40), (1, 50)], 2), max_age=None)
    assert indexes.tolist() == [0, 1]


def test_a_late_row_about_an_earlier_time_does_not_hide_a_newer_one():
    indexes = as_known(*columns([(1, 20, 20), (1, 10, 30)], 3), *columns([(1, 40)], 2), max_age=None)
    assert indexes.tolist() == [0]
