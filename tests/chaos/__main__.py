"""`python -m tests.chaos [NAME]`: run one fault after another under traffic, and account for every request.

With NAME only that fault runs.
"""

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
from tests.chaos.faults import FAULTS, Fault, run_fault
from tests.chaos.traffic import RATE
from tests.chaos.world import ChaosStack, run_chaos_stack

# Field of `Account` → heading of its column.
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
    """A number of requests.

    most: the highest number that meets the goal, or None without a goal.
    met: whether the goal is met, or None without a goal.
    """

    most: int | None
    met: bool | None


def main() -> int:
    """Return the exit code: 1 if a goal was missed or a fault could not be run, 130 after an interrupt, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make chaos")
    parser.add_argument(
        "name", nargs="?", choices=[fault.name for fault in FAULTS], help="the fault to run; without it all of them run"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    arguments = parser.parse_args()
    # SIGTERM then raises KeyboardInterrupt, so the servers are stopped too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    faults = [fault for fault in FAULTS if arguments.name in (None, fault.name)]
    try:
        accounts = _run_faults(faults, quiet=arguments.json)
    except KeyboardInterrupt:
        err.print("stopped; every process that was started has ended")
        return 130
    if arguments.json:
        print(json.dumps([{**asdict(account), "met": account.met} for account in accounts], indent=2))
    else:
        _show(accounts)
    if not arguments.name:
        write("chaos", list(_counts(accounts)))
    return 0 if all(account.met for account in accounts) else 1


class TrafficColumn(ProgressColumn):
    """Shows how many requests the running fault has sent so far, and how many were answered."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: ChaosStack | None = None

    def render(self, task: Task) -> Text:
        if self.stack is None or self.stack.run is None:
            return Text("starting")
        traffic = self.stack.run.traffic
        return Text(f"{len(traffic.requests):,} sent, {traffic.answered:,} answered, {traffic.failed:,} not")


def _run_faults(faults: Sequence[Fault], *, quiet: bool) -> list[Account]:
    """Run the faults in order and return their accounts. Shows the progress unless `quiet`."""
    traffic_column, accounts = TrafficColumn(), []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), traffic_column, TimeElapsedColumn())
    progress = Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)
    with progress, run_chaos_stack() as traffic_column.stack:
        for number, fault in enumerate(faults, 1):
            description = f"{number} of {len(faults)}: {fault.title.format(seconds=fault.seconds)}"
            task = progress.add_task(description)
            accounts.append(run_fault(traffic_column.stack, fault, seconds=fault.seconds))
            progress.remove_task(task)
            if not quiet:
                err.print(f"{'✓' if accounts[-1].met else '✗'} {description}")
    return accounts


def _show(accounts: Sequence[Account]) -> None:
    table = Table(title=f"{RATE:.0f} requests per second while …", title_justify="left")
    table.add_column("fault", min_width=36)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", max_width=15)
    for account in accounts:
        if account.skipped:
            table.add_row(account.fault, "not run")
        else:
            table.add_row(account.fault, *(f"{getattr(account, field):,}" for field in COLUMNS))
    Console().print(table)
    for account in accounts:
        if account.poisoned or account.dead:
            print(
                f"{account.fault}: {account.poisoned} requests failed because MariaDB rejects their row;"
                f" {account.dead} such rows of answered requests are in dead_letter"
            )
        for problem in filter(None, (account.skipped, account.problem, ", ".join(account.why))):
            print(f"{account.fault}: {problem}")


def _counts(accounts: Sequence[Account]) -> Iterator[Count]:
    """Yield the numbers of the table as figures for chaos.json."""
    for account in accounts:
        for field, heading in COLUMNS.items():
            most = {"failed": account.in_flight, "lost": 0, "twice": 0}.get(field)
            title, value = f"{account.fault}: {heading}", getattr(account, field)
            yield Count(title, value, "requests", most, None if most is None else value <= most)
        if account.problem or account.skipped:
            title = f"{account.fault}: {account.problem or account.skipped}"
            yield Count(title, 1, "not run as it should", 0, met=False)


if __name__ == "__main__":
    raise SystemExit(main())
