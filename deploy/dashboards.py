"""The queries of Grafana's dashboards, as their data sources receive them. For checks without Grafana."""

import json
from dataclasses import dataclass

from utils.version import ROOT

FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
MACROS = {  # Grafana's macros and their SQL, without a limit in time
    "$__timeFilter(": "1 = 1 OR (",
    "$__timeGroup(created_at, '1h')": "DATE_FORMAT(created_at, '%Y-%m-%d %H:00')",
}


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    panel: the panel's title.
    sql: the query for MariaDB, or empty.
    promql: the query for Prometheus, or empty.
    """

    panel: str
    sql: str
    promql: str


def queries() -> list[Query]:
    """The queries of all panels of all dashboards."""
    panels = [panel for file in sorted(FOLDER.glob("*.json")) for panel in json.loads(file.read_text())["panels"]]
    return [
        Query(panel["title"], _expanded(target.get("rawSql", "")), target.get("expr", ""))
        for panel in panels
        for target in panel["targets"]
    ]


def _expanded(sql: str) -> str:
    for macro, replacement in MACROS.items():
        sql = sql.replace(macro, replacement)
    return sql
