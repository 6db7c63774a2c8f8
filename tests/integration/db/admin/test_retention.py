"""Creating future partitions and dropping old ones, on a separate MariaDB whose log has only these tests' rows."""

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from db.admin import bootstrap
from db.admin.retention import (
    DAYS_AHEAD,
    MONTHS_AHEAD,
    PREDICTIONS,
    Partitioned,
    add_partitions,
    cuts,
    delete_feedback,
    drop_partitions,
    store_partitions,
)
from db.partitions import LATER, first_id_of
from db.session import engine, session
from db.store import appending
from db.store.batch import Origin
from db.store.schema import Column, StoreSchema
from tests.integration.db.store.test_store import feature, label, load
from tests.services import own_mariadb
from utils.errors import HeldBack
from utils.settings import STORE_DB, Settings

DAY = timedelta(days=1)
START = date(2026, 9, 1)  # the day of the server's setup, which creates 60 days of partitions
SCHEMA = StoreSchema(
    model="kept",
    features=(Column("amount", "number"), Column("kind", "category"), Column("note", "text")),
    label=Column("outcome", "category"),
    timed=True,
    max_age=30 * DAY,
)
FEATURES, LABELS = store_partitions(SCHEMA)
LOG = """INSERT INTO evergreen.prediction_log
         VALUES (:id, 'm', 1, 'champion', 'e', '{}', 'x', NULL, NULL, NULL, 1, UUID(), NOW(), NOW())"""
FEEDBACK = """INSERT INTO evergreen.prediction_feedback (prediction_id, model, actual, received_at)
          VALUES (:id, 'm', 'x', NOW())"""


@pytest.fixture
def settings() -> Iterator[Settings]:
    with own_mariadb([SCHEMA], today=START) as server:
        yield server.settings


def log(settings: Settings, *moments: datetime) -> None:
    with session(settings, "admin") as connection:
        for moment in moments:
            connection.execute(text(LOG), {"id": str(first_id_of(moment))})
            connection.execute(text(FEEDBACK), {"id": str(first_id_of(moment))})


def rows_by_partition(settings: Settings, table: Partitioned) -> dict[str, int]:
    with session(settings, "reader", table.database) as connection:
        names = [*(cut.name for cut in cuts(connection, table)), LATER]
        count: Callable[[str], int] = lambda name: connection.scalar(  # noqa: E731
            text(f"SELECT COUNT(*) FROM {table.name} PARTITION ({name})")
        )
        return {name: rows for name in names if (rows := count(name))}


def names(settings: Settings, table: Partitioned) -> list[str]:
    with session(settings, "reader", table.database) as connection:
        return [cut.name for cut in cuts(connection, table)]


def recorded_drops(settings: Settings) -> list[tuple[str, str | None, datetime]]:
    with session(settings, "reader") as connection:
        rows = connection.execute(text("SELECT table_name, model, dropped_before FROM retention ORDER BY id"))
        return [tuple(row) for row in rows]


def test_partitions_are_created_for_the_coming_days_and_months_and_only_once(settings):
    today = START + 70 * DAY  # after the first 60 days
    partitions = add_partitions(settings, PREDICTIONS, today=today)
    assert names(settings, PREDICTIONS)[-len(partitions) :] == partitions
    assert partitions[0] == f"p{today:%Y%m%d}"  # the days between have no rows and need no partition
    assert len(partitions) == DAYS_AHEAD + 1
    assert add_partitions(settings, PREDICTIONS, today=today) == []
    assert add_partitions(settings, FEATURES, today=date(2027, 8, 15), dry_run=True)[-1] == "p202711"
    assert add_partitions(settings, FEATURES, today=date(2027, 8, 15)) == ["p202708", "p202709", "p202710", "p202711"]
    assert len(add_partitions(settings, FEATURES, today=date(2027, 9, 15))) == 1
    assert MONTHS_AHEAD == 3


def test_rows_logged_before_their_partition_existed_move_into_it(settings):
    days = [datetime(2026, 11, 3, 23, 59), datetime(2026, 11, 4), datetime(2026, 11, 20, 12)]
    log(settings, *days)
    load(settings, SCHEMA, [feature("e", datetime(2027, 5, 2), 1.0), feature("e", datetime(2031, 1, 1), 2.0)])
    assert rows_by_partition(settings, PREDICTIONS) == {LATER: 3}
    partitions = add_partitions(settings, PREDICTIONS, today=date(2026, 11, 20))
    assert (partitions[0], partitions[-1]) == ("p20261103", "p20261204")
    assert rows_by_partition(settings, PREDICTIONS) == {"p20261103": 1, "p20261104": 1, "p20261120": 1}
    add_partitions(settings, FEATURES, today=date(2027, 5, 20))
    assert rows_by_partition(settings, FEATURES) == {"p202705": 1, LATER: 1}


def test_many_rows_without_a_partition_move_only_on_request(settings):
    log(settings, *(datetime(2026, 11, 20) + timedelta(seconds=n) for n in range(4)))
    names_before = names(settings, PREDICTIONS)
    with pytest.raises(HeldBack, match=r"more than 3 rows are in p_later.*partitions --hold-inserts"):
        add_partitions(settings, PREDICTIONS, today=date(2026, 11, 21), most=3)
    assert names(settings, PREDICTIONS) == names_before
    add_partitions(settings, PREDICTIONS, today=date(2026, 11, 21), most=None)
    assert rows_by_partition(settings, PREDICTIONS) == {"p20261120": 4}


def test_while_a_reader_is_open_a_change_gives_up_and_inserts_go_on(settings):
    names_before = names(settings, PREDICTIONS)
    reader_engine = engine(settings, "reader")
    with reader_engine.connect() as reader:
        reader.execute(text("SELECT COUNT(*) FROM prediction_log"))  # its transaction stays open
        with pytest.raises(HeldBack, match="a reader kept the table open over 2 tries"):
            add_partitions(settings, PREDICTIONS, today=START + 70 * DAY, pauses=(0.1,))
        with pytest.raises(HeldBack, match="a reader kept"):
            drop_partitions(
                settings, PREDICTIONS, before=datetime(2026, 9, 3), caused_by="t", now=datetime(2026, 12, 1), pauses=()
            )
        log(settings, datetime(2026, 9, 5))  # the reader is still open, and no waiting change blocks the insert
        assert names(settings, PREDICTIONS) == names_before
        assert recorded_drops(settings) == []  # no drop is recorded that did not happen
    reader_engine.dispose()
    assert len(add_partitions(settings, PREDICTIONS, today=START + 70 * DAY)) == DAYS_AHEAD + 1


def test_changes_of_partitions_take_turns(settings):
    """Two changes that wait for a reader one after the other would block inserts twice as long."""
    lock_engine = engine(settings, "reader")
    with lock_engine.connect() as connection, pytest.MonkeyPatch.context() as patch:
        connection.execute(text("SELECT GET_LOCK('evergreen_partitions', 0)"))
        patch.setattr("db.admin.retention.TURN_SECONDS", 0)
        with pytest.raises(HeldBack, match="others are being changed"):
            add_partitions(settings, PREDICTIONS, today=START + 70 * DAY)
    lock_engine.dispose()


def test_old_days_of_the_log_are_dropped_with_their_feedback_and_recorded(settings):
    log(settings, datetime(2026, 8, 1), datetime(2026, 9, 2, 12), datetime(2026, 9, 3), datetime(2026, 9, 30))
    options: dict[str, Any] = {"before": datetime(2026, 9, 3, 6), "caused_by": "test", "now": datetime(2026, 10, 3)}
    assert drop_partitions(settings, PREDICTIONS, **options, dry_run=True) == ["p20260901", "p20260902"]
    assert recorded_drops(settings) == []
    assert drop_partitions(settings, PREDICTIONS, **options) == ["p20260901", "p20260902"]
    assert drop_partitions(settings, PREDICTIONS, **options) == []
    assert rows_by_partition(settings, PREDICTIONS) == {"p20260903": 1, "p20260930": 1}
    assert recorded_drops(settings) == [
        ("prediction_log", None, datetime(2026, 9, 2)),
        ("prediction_log", None, datetime(2026, 9, 3)),
    ]
    assert delete_feedback(settings, before=datetime(2026, 9, 3)) == 2
    assert delete_feedback(settings, before=datetime(2026, 9, 3)) == 0
    with session(settings, "reader") as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM prediction_feedback")) == 2


def test_a_month_of_a_store_is_dropped_only_when_all_of_it_is_old(settings):
    load(settings, SCHEMA, [feature("e", datetime(2026, month, 10), 1.0) for month in (5, 6, 7)])
    options: dict[str, Any] = {"caused_by": "test", "now": datetime(2026, 10, 3)}
    drop_partitions(settings, FEATURES, before=datetime(2026, 6, 30), **options)
    assert rows_by_partition(settings, FEATURES) == {"p202606": 1, "p202607": 1}
    drop_partitions(settings, FEATURES, before=datetime(2026, 7, 1), **options)
    assert rows_by_partition(settings, FEATURES) == {"p202607": 1}
    assert recorded_drops(settings)[-1] == ("kept_features", "kept", datetime(2026, 7, 1))


def test_rows_of_a_killed_load_are_removed_and_a_running_load_is_left_alone(settings):
    origin = Origin("test", "0" * 64, "test", datetime(2026, 9, 1))
    load(settings, SCHEMA, labels=[label("e", datetime(2026, 9, 1), "yes")])
    with appending.open_batch(settings, SCHEMA, origin):
        assert appending.remove_dead(settings, SCHEMA) is None
    loader_engine = engine(settings, "admin", STORE_DB)
    with loader_engine.begin() as connection:  # what a killed loader leaves: rows and an open batch, but no lock
        connection.execute(
            text(
                "INSERT INTO evergreen.load_batch (batch_id, model, source, content_sha256, state, caused_by,"
                " opened_at) VALUES (77, 'kept', 's', 'x', 'open', 't', NOW())"
            )
        )
        connection.execute(text("INSERT INTO kept_labels VALUES ('f', '2026-09-01', '2026-09-01', 77, 'no')"))
    loader_engine.dispose()
    assert appending.remove_dead(settings, SCHEMA) == 1
    assert appending.remove_dead(settings, SCHEMA) == 0
    with session(settings, "reader", STORE_DB) as connection:
        assert connection.scalars(text("SELECT entity_id FROM kept_labels")).all() == ["e"]
        state = text("SELECT state FROM evergreen.load_batch WHERE batch_id = 77")
        assert connection.scalar(state) == "abandoned"


def test_a_stack_that_was_down_gets_its_partitions_before_its_first_rows(settings):
    changes = bootstrap.migrate(settings, [SCHEMA], today=START + 400 * DAY)
    assert f"made {DAYS_AHEAD + 1} partitions of evergreen.prediction_log" in " ".join(changes)
    assert bootstrap.migrate(settings, [SCHEMA], today=START + 400 * DAY) == []
