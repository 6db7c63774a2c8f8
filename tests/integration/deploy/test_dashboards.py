"""Run every query of Grafana's dashboards on MariaDB as Grafana's user. `make compose-check` runs Prometheus's."""

import pytest

from db.session import session
from deploy.dashboards import Query, queries
from utils.settings import Settings

SQL_QUERIES = [query for query in queries() if query.sql]


@pytest.mark.parametrize("query", SQL_QUERIES, ids=[query.panel for query in SQL_QUERIES])
def test_mariadb_answers_a_panel_as_its_reader(query: Query, settings: Settings) -> None:
    with session(settings, "reader") as connection:
        answer = connection.exec_driver_sql(query.sql.replace("%", "%%"))
        assert answer.keys()


def test_every_panel_queries_either_mariadb_or_prometheus_and_no_macro_is_left() -> None:
    assert all(bool(query.sql) != bool(query.promql) and "$__" not in query.sql + query.promql for query in queries())
