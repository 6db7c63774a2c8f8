"""`python -m benchmarks.run [NAME]`: measure, print a table, write benchmarks/results/NAME.json. Without NAME: all."""

import argparse
import importlib
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, Ratio, write
from benchmarks.machine import Others

NAMES = ("store", "serving", "shadow", "maintenance", "dags")
HEADINGS = ("what", "value", "unit", "against", "baseline", "ratio", "goal", "met")
LEFT = {"what", "unit", "against"}
MET = {True: "yes", False: "NO", None: ""}


def main() -> int:
    """Returns 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="what to measure; without it everything")
    given = parser.parse_args()
    missed = 0
    for name in [given.name] if given.name else NAMES:
        others = Others()
        figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure()
        figures += others.figures()
        show(name, figures)
        path = write(name, figures)
        print(f"written to {path}")
        missed += sum(isinstance(each, Ratio) and each.met is False for each in figures)
    return 1 if missed else 0


def show(name: str, figures: Sequence[Figure]) -> None:
    """Print the table."""
    table = Table(title=name, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in LEFT else "right")
    for each in figures:
        row = [each.what, _number(each.value), each.unit]
        if isinstance(each, Ratio):
            goal = "" if each.goal is None else _number(each.goal)
            row += [each.against, _number(each.baseline), _number(each.ratio), goal, MET[each.met]]
        table.add_row(*row)
    Console(width=150).print(table)


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    raise SystemExit(main())
