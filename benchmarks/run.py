"""`python -m benchmarks.run [NAME]`: measure, print a table, write benchmarks/results/NAME.json. Without NAME: all."""

import argparse
import importlib

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, write

NAMES = ("store", "serving", "shadow", "maintenance", "dags")


def main() -> int:
    """Returns 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="what to measure; without it everything")
    given = parser.parse_args()
    missed = 0
    for name in [given.name] if given.name else NAMES:
        figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure()
        show(name, figures)
        path = write(name, figures)
        print(f"written to {path}")
        missed += sum(figure.met is False for figure in figures)
    return 1 if missed else 0


def show(name: str, figures: list[Figure]) -> None:
    table = Table(title=name, title_justify="left")
    for heading in ("what", "value", "unit", "baseline", "ratio", "goal", "met"):
        table.add_column(heading, justify="left" if heading in {"what", "unit"} else "right")
    for each in figures:
        numbers = (_number(each.baseline), _number(each.ratio), _number(each.goal))
        table.add_row(each.what, _number(each.value), each.unit, *numbers, {True: "yes", False: "NO"}.get(each.met, ""))  # type: ignore[call-overload]
    Console(width=150).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    raise SystemExit(main())
