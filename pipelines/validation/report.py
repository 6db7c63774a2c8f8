"""The report of a validation: the findings with their severities, and the report as an HTML page."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from pipelines.spec import Severity, Validation
from pipelines.validation.rules import Finding


@dataclass(frozen=True, slots=True)
class Violation:
    """A finding with its severity.

    severity: `error` or `warning`, from the model file.
    rule, column, share, text: as in `Finding`.
    """

    severity: Severity
    rule: str
    column: str | None
    share: float
    text: str

    def __str__(self) -> str:
        return f"{self.column} {self.text}" if self.column else self.text

    def to_json(self) -> dict[str, Any]:
        """The violation as the report stores it. There the key of `text` is `said`."""
        return {"said" if name == "text" else name: value for name, value in asdict(self).items()}


def grade_findings(findings: Iterable[Finding], policy: Validation) -> list[Violation]:
    """Give each finding its severity. Errors come before warnings, and larger shares of rows before smaller shares."""
    violations = [Violation(getattr(policy, finding.rule, "error"), **asdict(finding)) for finding in findings]
    return sorted(
        violations, key=lambda violation: (violation.severity, -violation.share)
    )  # "error" sorts before "warning"


def render_page(report: Mapping[str, Any]) -> str:
    """Render the report as one HTML page, which loads no other files and runs no scripts. All values are escaped.

    report: the stored report, as `validate` builds it.
    """
    violations = (
        "".join(_render_violation(violation) for violation in report["violations"]) or "<p>No rule is broken.</p>"
    )
    columns = "".join(_render_column(name, column) for name, column in report["statistics"]["columns"].items())
    last_training = report["compared_with"]
    comparison = (
        f"Compared with the training up to {last_training['window_end']} UTC."
        if last_training
        else "The first training."
    )
    counts = ", ".join(_pluralize(report[kind], kind) for kind in ("errors", "warnings") if report[kind])
    title = escape(f"{report['model']}: {counts or 'passed'}")
    facts = f"{report['statistics']['rows']:,} rows, up to {report['window_end']} UTC. {comparison}"
    names = f"Snapshot {report['snapshot_id']}, run {report['run_id']}"
    return PAGE.format(
        title=title,
        facts=escape(facts),
        names=escape(names),
        violations=violations,
        label=_render_label(report["statistics"]["label"]),
        columns=columns,
    )


def _pluralize(number: int, noun: str) -> str:
    return f"{number:,} {noun if number != 1 else noun.removesuffix('s')}"


def _render_violation(violation: Mapping[str, Any]) -> str:
    severity, rule = escape(violation["severity"]), escape(violation["rule"])
    name = f"<b>{escape(violation['column'])}</b> " if violation["column"] else ""
    return f'<p class="{severity}"><span>{severity} · {rule}</span>{name}{escape(violation["said"])}</p>'


def _render_column(name: str, column: Mapping[str, Any]) -> str:
    last_share = column["missing_before"]
    kind = column["type"]
    if column["min"] is not None:
        kind += f", {column['min']:,.6g} to {column['max']:,.6g}"
    heading = escape(name).replace("_", "_<wbr>")
    cells = (
        _format_share(column["missing"]),
        "" if last_share is None else _format_share(last_share),
        f"{column['distinct']:,}",
    )
    values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr><th>{heading}<small>{escape(kind)}</small></th>{values}</tr>"


def _render_label(label: Mapping[str, Any]) -> str:
    if "classes" not in label:
        return escape(", ".join(f"{name} {value:,.6g}" for name, value in label.items() if value is not None))
    rows = max(1, sum(label["classes"].values()))
    return escape(
        ", ".join(f"{name} {count:,} ({_format_share(count / rows)})" for name, count in label["classes"].items())
    )


def _format_share(share: float) -> str:
    return "0" if not share else f"{share:.1%}"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; margin: 0; }} h2 {{ font-size: 1.1rem; margin: 1.5rem 0 .5rem; }}
p, th:first-child {{ overflow-wrap: anywhere; }}
.error, .warning {{ border-left: .3rem solid #c62828; margin: .5rem 0; padding: .2rem .7rem; }}
.warning {{ border-color: #b26a00; }}
.error span, .warning span, small {{ display: block; font-size: .8rem; font-weight: normal; opacity: .75; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; }}
th, td {{ padding: .3rem .5rem; border-bottom: 1px solid #8884; text-align: right; }}
td {{ font-variant-numeric: tabular-nums; }}
th:first-child {{ text-align: left; padding-left: 0; }}
</style>
<h1>{title}</h1>
<p>{facts}<small>{names}</small></p>
<h2>Broken rules, the worst first</h2>
{violations}
<h2>Label</h2>
<p>{label}</p>
<h2>Features</h2>
<table>
<thead><tr><th>feature</th><th>missing</th><th>before</th><th>distinct</th></tr></thead>
<tbody>{columns}</tbody>
</table>
</html>
"""
