"""`python -m benchmarks.run [NAME]`: run a benchmark, print its figures, and write benchmarks/results/NAME.json.

Without NAME, all benchmarks run.
"""

import argparse
import importlib
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, Ratio, write
from benchmarks.machine import OtherUse

NAMES = ("store", "serving", "shadow", "maintenance", "dags")
HEADINGS = ("what", "value", "unit", "against", "baseline", "ratio", "goal", "met")
LEFT_ALIGNED = {"what", "unit", "against"}
MET_TEXTS = {True: "yes", False: "NO", None: ""}


def main() -> int:
    """Return the exit code: 1 if a goal was missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="the benchmark to run; without it all of them run")
    options = parser.parse_args()
    missed_goals = 0
    for name in [options.name] if options.name else NAMES:
        other_use = OtherUse()
        figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure()
        figures += other_use.figures()
        show(name, figures)
        path = write(name, figures)
        print(f"written to {path}")
        missed_goals += sum(isinstance(figure, Ratio) and figure.met is False for figure in figures)
    return 1 if missed_goals else 0


def show(name: str, figures: Sequence[Figure]) -> None:
    """Print the figures of the benchmark `name` as a table."""
    table = Table(title=name, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in LEFT_ALIGNED else "right")
    for figure in figures:
        row = [figure.what, _format_number(figure.value), figure.unit]
        if isinstance(figure, Ratio):
            goal = "" if figure.goal is None else _format_number(figure.goal)
            row += [
                figure.against,
                _format_number(figure.baseline),
                _format_number(figure.ratio),
                goal,
                MET_TEXTS[figure.met],
            ]
        table.add_row(*row)
    Console(width=150).print(table)


def _format_number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    raise SystemExit(main())
