"""The queries of Grafana's dashboards in the form that the data sources receive. Checks run them without Grafana."""

import json
from dataclasses import dataclass

from utils.version import ROOT

FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
MACROS = {  # Grafana's macro → SQL that selects all times
    "$__timeFilter(": "1 = 1 OR (",
    "$__timeGroup(created_at, '1h')": "DATE_FORMAT(created_at, '%Y-%m-%d %H:00')",
}


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    panel: the title of the panel.
    sql: the query for MariaDB. Empty if the panel queries Prometheus.
    promql: the query for Prometheus. Empty if the panel queries MariaDB.
    """

    panel: str
    sql: str
    promql: str


def queries() -> list[Query]:
    """The queries of all panels in all dashboards."""
    panels = [panel for file in sorted(FOLDER.glob("*.json")) for panel in json.loads(file.read_text())["panels"]]
    return [
        Query(panel["title"], _expand_macros(target.get("rawSql", "")), target.get("expr", ""))
        for panel in panels
        for target in panel["targets"]
    ]


def _expand_macros(sql: str) -> str:
    for macro, replacement in MACROS.items():
        sql = sql.replace(macro, replacement)
    return sql
