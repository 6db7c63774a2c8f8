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
    """A number of requests. `most` is the limit, or None without one."""

    most: int | None
    met: bool | None


def main() -> int:
    """Return 1 if a goal was missed or a fault could not be run, 130 after an interrupt, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make chaos")
    parser.add_argument("name", nargs="?", choices=[fault.name for fault in FAULTS], help="one fault; without it all")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM stops the servers too
    faults = [fault for fault in FAULTS if arguments.name in (None, fault.name)]
    try:
        accounts = _accounts(faults, quiet=arguments.json)
    except KeyboardInterrupt:
        err.print("stopped; all that was started has ended")
        return 130
    if arguments.json:
        print(json.dumps([{**asdict(each), "met": each.met} for each in accounts], indent=2))
    else:
        _show(accounts)
    if not arguments.name:
        write("chaos", list(_counts(accounts)))
    return 0 if all(account.met for account in accounts) else 1


class TrafficColumn(ProgressColumn):
    """The number of requests of the fault so far."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    def render(self, task: Task) -> Text:
        if self.world is None or self.world.run is None:
            return Text("starting")
        traffic = self.world.run.traffic
        return Text(f"{len(traffic.requests):,} sent, {traffic.answered:,} answered, {traffic.failed:,} not")


def _accounts(faults: Sequence[Fault], *, quiet: bool) -> list[Account]:
    traffic, accounts = TrafficColumn(), []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), traffic, TimeElapsedColumn())
    progress = Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)
    with progress, make_world() as traffic.world:
        for number, fault in enumerate(faults, 1):
            place = f"{number} of {len(faults)}: {fault.title.format(seconds=fault.seconds)}"
            task = progress.add_task(place)
            accounts.append(break_it(traffic.world, fault, seconds=fault.seconds))
            progress.remove_task(task)
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
            title, value = f"{each.fault}: {heading}", getattr(each, name)
            yield Count(title, value, "requests", most, None if most is None else value <= most)
        if each.problem or each.skipped:
            yield Count(f"{each.fault}: {each.problem or each.skipped}", 1, "not run as it should", 0, met=False)


if __name__ == "__main__":
    raise SystemExit(main())
