"""Loads with `source.query`: rows come from a table in another database on the same server."""

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from db.admin import bootstrap
from db.session import session
from pipelines.loading.pull import pull
from pipelines.spec import ModelSpec
from utils.errors import AccessDenied, DataRefused, MissingColumns, RowsRefused, Unreachable
from utils.settings import STORE_DB, Settings

NOW = datetime(2026, 9, 30, 12)
TABLE = """
CREATE TABLE crm.statements (customer VARCHAR(20), day DATE, amount DECIMAL(12, 2), kind VARCHAR(20), paid VARCHAR(5),
                             updated_at DATETIME(6), secret VARCHAR(20), PRIMARY KEY (customer, day))
"""
QUERY = "SELECT customer, day, amount, kind, paid, secret FROM crm.statements WHERE updated_at > :since"
Insert = Callable[..., None]


@pytest.fixture(scope="module")
def crm(settings: Settings) -> Insert:
    """A function that inserts or replaces a row in a foreign database, which the loader may read."""
    with session(settings, "root") as root:
        root.execute(text("CREATE DATABASE crm"))
        root.execute(text(TABLE))
        root.execute(text("CREATE TABLE crm.hidden (customer VARCHAR(20))"))
        root.execute(text("GRANT SELECT ON crm.statements TO :user@'%'"), {"user": settings.db_user("loader")})

    def put(customer: str, day: int, amount: float | None, *, updated_at: datetime = NOW) -> None:
        row = {"customer": customer, "day": datetime(2026, 9, day), "amount": amount, "at": updated_at}
        with session(settings, "root") as root:
            root.execute(
                text("REPLACE INTO crm.statements VALUES (:customer, :day, :amount, 'a', 'Yes', :at, 'hush')"), row
            )

    return put


@pytest.fixture
def spec(settings: Settings, crm: Insert) -> ModelSpec:
    """A new model for each test. The source table is empty."""
    with session(settings, "root") as root:
        root.execute(text("TRUNCATE crm.statements"))
    new_spec = with_query(QUERY, name=f"m{secrets.token_hex(4)}")
    bootstrap.migrate(settings, [new_spec.store])
    return new_spec


def with_query(query: str, *, name: str = "any", **source: str) -> ModelSpec:
    file: dict[str, Any] = {
        "name": name,
        "task": "binary",
        "entity": "customer",
        "source": {"event_time": "day", "query": query, **source},
        "label": {"column": "paid", "classes": ["No", "Yes"]},
        "features": {
            "columns": {"amount": {"type": "numeric", "min": 0}, "kind": {"type": "categorical"}},
            "private": ["secret"],
        },
    }
    return ModelSpec.parse(file, file=f"{name}.yaml")


def store_rows(settings: Settings, spec: ModelSpec) -> list[tuple[Any, ...]]:
    query = text(f"SELECT entity_id, amount, available_at FROM {STORE_DB}.{spec.name}_features ORDER BY 1, 3")
    with session(settings, "reader") as connection:
        return [tuple(row) for row in connection.execute(query)]


def pull_counts(settings: Settings, spec: ModelSpec, *, now: datetime = NOW) -> tuple[int, int, int]:
    report = pull(settings, spec=spec, caused_by="test", now=now)
    return report.features_added, report.labels_added, report.corrections


def test_rows_of_a_table_enter_the_store_in_its_types_and_a_second_time_change_nothing(
    settings: Settings, spec: ModelSpec, crm: Insert
) -> None:
    assert pull_counts(settings, spec) == (0, 0, 0)  # an empty table is no error
    crm("c1", 1, 12.34)
    crm("c2", 1, None)
    assert pull_counts(settings, spec) == (2, 2, 0)
    assert pull_counts(settings, spec) == (0, 0, 0)
    assert store_rows(settings, spec) == [("c1", 12.34, datetime(2026, 9, 1)), ("c2", None, datetime(2026, 9, 1))]


def test_a_pull_reads_only_rows_since_the_last_one_and_a_changed_row_is_a_correction(
    settings: Settings, spec: ModelSpec, crm: Insert
) -> None:
    crm("c1", 1, 10.0)
    assert pull_counts(settings, spec) == (1, 1, 0)
    crm("old", 1, 1.0, updated_at=NOW - timedelta(hours=2))  # older than the overlap of two pulls
    crm("late", 1, 1.0, updated_at=NOW - timedelta(minutes=30))  # committed during the last pull
    crm("c1", 1, 11.0, updated_at=NOW + timedelta(minutes=5))
    later = NOW + timedelta(days=1)
    assert pull_counts(settings, spec, now=later) == (2, 1, 1)
    assert [row[:2] for row in store_rows(settings, spec)] == [("c1", 10.0), ("c1", 11.0), ("late", 1.0)]
    assert store_rows(settings, spec)[1][2] == later


def test_a_query_passes_the_same_checks_as_a_file(settings: Settings, spec: ModelSpec, crm: Insert) -> None:
    crm("c1", 1, 5.0)
    crm("c2", 1, -5.0)
    with pytest.raises(RowsRefused, match=r"amount = '-5.00': is below the minimum 0"):
        pull_counts(settings, spec)
    assert store_rows(settings, spec) == []
    with pytest.raises(MissingColumns, match="missing columns day"):
        pull_counts(settings, with_query("SELECT customer, amount, kind FROM crm.statements", name=spec.name))


@pytest.mark.parametrize(
    "statement", ["DELETE FROM crm.statements", "SELECT 1 FROM nowhere.x", "SELEC", "SELECT :other"]
)
def test_an_invalid_query_is_refused_in_one_line(settings: Settings, spec: ModelSpec, statement: str) -> None:
    with pytest.raises((DataRefused, AccessDenied)) as refused:
        pull_counts(settings, with_query(statement, name=spec.name))
    assert "\n" not in str(refused.value)


def test_a_query_can_only_read_even_where_its_user_may_write(settings: Settings, spec: ModelSpec) -> None:
    with pytest.raises(DataRefused, match="READ ONLY"):
        pull_counts(settings, with_query(f"DELETE FROM {STORE_DB}.{spec.name}_features", name=spec.name))


def test_the_error_for_a_table_without_grant_names_the_user(settings: Settings, spec: ModelSpec) -> None:
    with pytest.raises(AccessDenied, match="evergreen_loader"):
        pull_counts(settings, with_query("SELECT * FROM crm.hidden", name=spec.name))


def test_another_database_is_read_over_its_own_address(settings: Settings, spec: ModelSpec, crm: Insert) -> None:
    crm("c1", 1, 5.0)
    over_crm = with_query(QUERY, name=spec.name, connection="crm")
    with pytest.raises(DataRefused, match="only its training DAG"):
        pull_counts(settings, over_crm)
    address = settings.db_url("root", "crm", scheme="mysql")
    report = pull(settings, spec=over_crm, caused_by="test", now=NOW, address=address)
    assert (report.source, report.features_added) == ("query over crm", 1)
    unreachable = address.replace(f":{settings.mariadb_port}/", ":1/")
    with pytest.raises(Unreachable, match="connection crm") as refused:
        pull(settings, spec=over_crm, caused_by="test", now=NOW, address=unreachable)
    assert settings.db_password("root") not in str(refused.value)
