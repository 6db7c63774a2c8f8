"""`python -m tests.chaos [NAME]`: break one thing after another under traffic, and account for every request."""

import argparse
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figure, write
from tests.chaos.accounts import Account
from tests.chaos.faults import FAULTS, Fault, break_it
from tests.chaos.traffic import RATE
from tests.chaos.world import World, make_world

COLUMNS = {
    "requests": "requests",
    "failed": "failed",
    "in_flight": "of these in flight on a killed worker",
    "lost": "answered but not logged",
    "twice": "logged twice",
    "unavailable": "503 while both MariaDB and spool were out",
    "refused": "refused while nothing listened",
}

err = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Count(Figure):
    """Of requests; `most` is what it must not exceed, if anything."""

    most: int | None
    met: bool | None


def main() -> int:
    """Returns 1 where a goal was broken or a fault could not be run."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make chaos")
    parser.add_argument("name", nargs="?", choices=[fault.name for fault in FAULTS], help="one fault; without it all")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started ends with it
    chosen = [fault for fault in FAULTS if given.name in (None, fault.name)]
    try:
        accounts = _accounts(chosen, quiet=given.json)
    except KeyboardInterrupt:
        err.print("stopped; all that was started has ended")
        return 130
    if given.json:
        print(json.dumps([{**asdict(each), "met": each.met} for each in accounts], indent=2))
    else:
        _show(accounts)
    if not given.name:
        write("chaos", list(_counts(accounts)))
    return 0 if all(account.met for account in accounts) else 1


class Sent(ProgressColumn):
    """How much traffic the fault has had so far."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    def render(self, task: Task) -> Text:
        if self.world is None or self.world.run is None:
            return Text("starting")
        traffic = self.world.run.traffic
        return Text(f"{len(traffic.asked):,} sent, {traffic.answered:,} answered, {traffic.failed:,} not")


def _accounts(chosen: Sequence[Fault], *, quiet: bool) -> list[Account]:
    sent, accounts = Sent(), []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), sent, TimeElapsedColumn())
    shown = Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)
    with shown, make_world() as sent.world:
        for number, fault in enumerate(chosen, 1):
            place = f"{number} of {len(chosen)}: {fault.title.format(seconds=fault.seconds)}"
            task = shown.add_task(place)
            accounts.append(break_it(sent.world, fault, seconds=fault.seconds))
            shown.remove_task(task)
            if not quiet:
                err.print(f"{'✓' if accounts[-1].met else '✗'} {place}")
    return accounts


def _show(accounts: Sequence[Account]) -> None:
    table = Table(title=f"{RATE:.0f} requests a second while …", title_justify="left")
    table.add_column("fault", min_width=36)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", max_width=15)
    for each in accounts:
        if each.skipped:
            table.add_row(each.fault, "not run")
        else:
            table.add_row(each.fault, *(f"{getattr(each, name):,}" for name in COLUMNS))
    Console().print(table)
    for each in accounts:
        if each.poisoned or each.dead:
            print(f"{each.fault}: {each.poisoned} such rows failed alone, {each.dead} answered ones are in dead_letter")
        for trouble in filter(None, (each.skipped, each.problem, ", ".join(each.why))):
            print(f"{each.fault}: {trouble}")


def _counts(accounts: Sequence[Account]) -> Iterator[Count]:
    for each in accounts:
        for name, heading in COLUMNS.items():
            most = {"failed": each.in_flight, "lost": 0, "twice": 0}.get(name)
            what, value = f"{each.fault}: {heading}", getattr(each, name)
            yield Count(what, value, "requests", most, None if most is None else value <= most)
        if each.problem or each.skipped:
            yield Count(f"{each.fault}: {each.problem or each.skipped}", 1, "not run as it should", 0, met=False)


if __name__ == "__main__":
    raise SystemExit(main())
