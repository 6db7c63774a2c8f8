"""The migrated database matches db/tables, and a migration can be repeated."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from uuid6 import uuid7

from db.admin import bootstrap
from db.partitions import first_id_of
from db.session import session
from db.store.schema import Column
from db.tables import metadata
from utils.settings import PLATFORM_DB, STORE_DB, Settings

SCRATCH = "scratch"
COLUMNS = """SELECT table_name, column_name, column_type, is_nullable, column_default, extra, collation_name
             FROM information_schema.columns WHERE table_schema = :name AND table_name <> 'alembic_version'"""
INDEXES = """SELECT table_name, index_name, seq_in_index, column_name, non_unique
             FROM information_schema.statistics WHERE table_schema = :name AND table_name <> 'alembic_version'"""


def shape(connection: Connection, database: str) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    columns, indexes = (connection.execute(text(query), {"name": database}).all() for query in (COLUMNS, INDEXES))
    return {tuple(row) for row in columns}, {tuple(row) for row in indexes}


@pytest.fixture
def scratch(settings: Settings) -> Iterator[str]:
    """An empty database."""
    with session(settings, "root", "information_schema") as connection:
        connection.execute(text(f"CREATE DATABASE {SCRATCH} CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"))
    yield SCRATCH
    with session(settings, "root", "information_schema") as connection:
        connection.execute(text(f"DROP DATABASE {SCRATCH}"))


def test_migrations_make_the_tables_that_the_code_describes(settings, scratch):
    with session(settings, "root", scratch) as connection:
        metadata.create_all(connection)
        (columns, indexes), migrated_shape = shape(connection, scratch), shape(connection, PLATFORM_DB)
    assert len(columns) > 50
    assert migrated_shape == (columns, indexes)


def test_a_second_migration_reports_no_change(settings, credit_score):
    assert bootstrap.migrate(settings, [credit_score.store]) == []


def test_databases_and_users_can_be_created_again(settings):
    bootstrap.create_databases_and_users(settings)
    with session(settings, "reader") as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_feature_added_to_the_model_file_becomes_a_column(settings, new_schema):
    schema = new_schema()
    wider = replace(schema, features=(*schema.features, Column("extra", "number")))
    changes = bootstrap.migrate(settings, [wider])
    assert changes == [
        f"added column extra to {STORE_DB}.{schema.features_table}",
        f"added column extra to {STORE_DB}.{schema.latest_table}",
    ]
    assert bootstrap.migrate(settings, [wider]) == []


def test_the_store_distinguishes_upper_from_lower_case_and_trailing_spaces(settings, new_schema):
    schema = new_schema()
    with session(settings, "reader", STORE_DB) as connection:
        collations = connection.scalars(
            text("SELECT table_collation FROM information_schema.tables WHERE table_name LIKE :name"),
            {"name": f"{schema.model}%"},
        ).all()
    assert collations == ["utf8mb4_nopad_bin"] * 3


def test_data_without_time_is_not_partitioned_and_data_with_time_is_by_month(settings, new_schema):
    timed, timeless = new_schema(), new_schema(timed=False)
    with session(settings, "reader", STORE_DB) as connection:
        query = text("SELECT partition_name FROM information_schema.partitions WHERE table_name = :name")
        assert connection.scalars(query, {"name": timeless.features_table}).all() == [None]
        months = connection.scalars(query, {"name": timed.features_table}).all()
    assert f"p{datetime.now(UTC):%Y%m}" in months
    assert months[-1] == "p_later"


def in_partition(connection: Connection, partition: str, prediction_id: UUID) -> bool:
    query = f"SELECT COUNT(*) FROM prediction_log PARTITION ({partition}) WHERE prediction_id = :id"
    return connection.scalar(text(query), {"id": str(prediction_id)}) == 1


LOG = """INSERT INTO prediction_log (prediction_id, model, version, role, entity_id, features, prediction, latency_ms,
         instance, created_at, logged_at) VALUES (:id, 'm', 1, 'champion', 'e', '{}', 'x', 1, UUID(), NOW(), NOW())"""


def test_a_prediction_lands_in_the_partition_of_its_day_or_in_the_last_one(settings):
    day = datetime.now(UTC).date()
    today, far = uuid7(), first_id_of(datetime(day.year + 5, 1, 1))
    with session(settings, "admin") as connection:
        for prediction_id in (today, far):
            connection.execute(text(LOG), {"id": str(prediction_id)})
        assert in_partition(connection, f"p{day:%Y%m%d}", today)
        assert in_partition(connection, "p_later", far)
        connection.rollback()


def test_a_range_of_ids_reads_only_the_partitions_of_its_days(settings):
    day = datetime.now(UTC).date() + timedelta(days=3)
    start = datetime(day.year, day.month, day.day)
    bounds = {"low": str(first_id_of(start)), "high": str(first_id_of(start + timedelta(days=1)))}
    query = "SELECT * FROM prediction_log WHERE prediction_id >= :low AND prediction_id < :high"
    with session(settings, "admin") as connection:
        plan = connection.execute(text(f"EXPLAIN PARTITIONS {query}"), bounds).mappings().one()
    assert f"p{day:%Y%m%d}" in plan["partitions"]
    assert len(plan["partitions"].split(",")) <= 2
