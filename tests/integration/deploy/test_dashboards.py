"""Run the MariaDB queries of Grafana's dashboards as Grafana's user. `make compose-check` runs Prometheus's queries."""

import pytest

from db.session import session
from deploy.dashboards import Query, queries
from utils.settings import Settings

SQL_QUERIES = [query for query in queries() if query.sql]


@pytest.mark.parametrize("query", SQL_QUERIES, ids=[query.panel for query in SQL_QUERIES])
def test_mariadb_runs_the_query_of_a_panel_for_the_user_reader(query: Query, settings: Settings) -> None:
    with session(settings, "reader") as connection:
        answer = connection.exec_driver_sql(query.sql.replace("%", "%%"))
        assert answer.keys()


def test_every_query_is_for_mariadb_or_prometheus_and_contains_no_macro() -> None:
    assert all(bool(query.sql) != bool(query.promql) and "$__" not in query.sql + query.promql for query in queries())
