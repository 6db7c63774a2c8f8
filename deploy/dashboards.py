"""What Grafana's dashboards ask, for checks without a Grafana: their queries, each as its source gets it."""

import json
from dataclasses import dataclass

from utils.version import ROOT

FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
MACROS = {  # what Grafana writes in the place of its macros; here for all time
    "$__timeFilter(": "1 = 1 OR (",
    "$__timeGroup(created_at, '1h')": "DATE_FORMAT(created_at, '%Y-%m-%d %H:00')",
}


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel, in SQL for MariaDB or in PromQL for Prometheus; the other is empty."""

    panel: str
    sql: str
    promql: str


def queries() -> list[Query]:
    """Of all panels of all dashboards."""
    panels = [panel for file in sorted(FOLDER.glob("*.json")) for panel in json.loads(file.read_text())["panels"]]
    return [
        Query(panel["title"], _expanded(target.get("rawSql", "")), target.get("expr", ""))
        for panel in panels
        for target in panel["targets"]
    ]


def _expanded(sql: str) -> str:
    for macro, meaning in MACROS.items():
        sql = sql.replace(macro, meaning)
    return sql
