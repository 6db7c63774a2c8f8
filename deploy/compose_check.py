"""`make compose-check`: bring docker-compose.yaml up for real, use it, break it, upgrade it, take it down.

It builds the images, waits for health, asks every model, trains one through Airflow, kills every container under
traffic, and upgrades under traffic; all that was answered must be in the log, once. `make compose-check NAME=profiles`
does the same for the profiles: monitoring, replicas, scale. It has a project, volumes, ports and secrets of its own,
prints a table and exits with 1 where anything differs from what it should be.

Containers are crashed by SIGKILL from outside, so it needs the rights for that: root's, with the usual engine.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from api.requests.row_type import example
from deploy import compose_profiles as profiles
from deploy.compose_stack import ONE_SHOT, PROJECT, Stack
from deploy.compose_traffic import Target, Traffic
from pipelines.spec import find_spec, model_names
from stack.programs.airflow_client import Airflow
from utils.patience import Patience

TAKE_2_GB = "python -c 'bytearray(1) * 2**31'; test $? = 137"  # 137: killed by the kernel for its memory
RATE = 50.0  # requests a second while containers are killed and exchanged
console = Console()


def targets(stack: Stack) -> list[Target]:
    """Every model's service."""
    specs = [find_spec(stack.models, name) for name in model_names(stack.models)]
    return [Target(stack.url(spec.name), example(spec), spec.entity) for spec in specs]


def account(stack: Stack, traffic: Traffic) -> str:
    """Raises: RuntimeError where an answered prediction is not in the log just once."""
    found = traffic.account(stack.settings)
    if found.lost or found.twice or not found.answered:
        raise RuntimeError(str(found))
    return str(found)


def build(stack: Stack) -> str:
    take_down(stack)  # what a check that was interrupted has left
    stack.make_standins()
    stack.compose("build")
    images = {each["image"] for name, each in stack.services.items() if "build" in each and name in stack.started}
    sizes = {image: int(stack.docker("image", "inspect", "-f", "{{.Size}}", image)) for image in sorted(images)}
    return ", ".join(f"{image} {size / 1e9:.2f} GB" for image, size in sizes.items())


def bring_up(stack: Stack) -> str:
    stack.compose("up", "-d")
    stack.wait_well(stack.started)
    return f"{len(stack.started)} containers as they should be"


def ask(stack: Stack) -> str:
    """One prediction a model."""
    traffic = Traffic(targets(stack), stack.settings.api_key.get_secret_value(), rate=10)
    with traffic:
        patience = Patience(
            "an answer of every model", lambda: len(traffic.answered), state=lambda: traffic.failed[-1:]
        )
        patience.until(lambda: len(traffic.answered) >= len(traffic.targets))
    if traffic.failed:  # they are asked in turn, so without a failure each has answered
        raise RuntimeError(traffic.failed[0])
    return account(stack, traffic)


def train(stack: Stack) -> str:
    airflow = Airflow(stack.settings)
    run = airflow.trigger("churn_training", {"reason": "compose-check", "trials": 2})
    profiles.require_success(airflow, "churn_training", run)
    return "churn_training success"


def kill_each(stack: Stack) -> str:
    """A crash of the first process of each container, which the restart policy answers."""
    killed = [name for name in stack.started if name not in ONE_SHOT]
    with Traffic(targets(stack), stack.settings.api_key.get_secret_value(), RATE) as traffic:
        for name in killed:
            stack.crash(stack.containers(name)[0])
            stack.wait_well([name])
        stack.wait_well(stack.started)
    return f"{len(killed)} containers came back; {account(stack, traffic)}"


def upgrade(stack: Stack) -> str:
    """Another commit makes other images, so every container of ours is exchanged."""
    before = stack.containers("serve-churn")
    with Traffic(targets(stack), stack.settings.api_key.get_secret_value(), RATE) as traffic:
        stack.compose("up", "-d", "--build", EVERGREEN_COMMIT="upgraded")
        stack.wait_well(stack.started)
    if stack.containers("serve-churn") == before:
        raise RuntimeError("serve-churn was not exchanged")
    return account(stack, traffic)


def memory(stack: Stack) -> str:
    """Nothing came to its limit, and one that does is ended.

    Raises: RuntimeError where a container has no limit, was killed for it, or lives on beyond it.
    """
    stack.compose("run", "--rm", "--no-deps", "-T", "serve-churn", "sh", "-c", TAKE_2_GB)
    told = ["2 GB in a container of 1 GB: killed"]
    for name in (each for each in stack.started if each not in ONE_SHOT):
        [container] = stack.containers(name)
        limit = int(stack.docker("inspect", "-f", "{{.HostConfig.Memory}}", container))
        used, _ = stack.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", container).split(" / ")
        if not limit or stack.state(container)["OOMKilled"]:
            raise RuntimeError(f"{name}: limit {limit}, {stack.state(container)}")
        told.append(f"{name} {used} of {limit / 2**20:.0f}MiB")
    return ", ".join(told)


def take_down(stack: Stack) -> str:
    stack.compose("down", "--volumes", "--timeout", "60", profiles=profiles.NAMES)
    left = stack.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
    if left:
        raise RuntimeError(f"containers are left: {left}")
    return "nothing is left"


Step = Callable[[Stack], str]
BEGIN: dict[str, Step] = {"build": build, "up": bring_up}
USE: dict[str, Step] = {
    "one prediction a model": ask,
    "one training": train,
    "every container killed": kill_each,
    "upgrade": upgrade,
    "memory": memory,
}
PROFILES: dict[str, Step] = {
    "rules and dashboards": profiles.monitoring,
    "load by locust": profiles.load,
    "two replicas": profiles.replicas,
    "two workers": lambda stack: profiles.scale(stack, console),
}


def main(arguments: list[str]) -> int:
    """Exit code 1 where a step differs from what it should be."""
    steps: dict[str, Any] = {**BEGIN, **(PROFILES if arguments == ["profiles"] else USE), "down": take_down}
    table, failed = Table(title="compose-check"), False
    for heading in ("step", "seconds", "what was seen"):
        table.add_column(heading, overflow="fold")
    with tempfile.TemporaryDirectory(prefix="eg-compose-") as folder:
        stack = Stack(Path(folder))
        for name, step in steps.items():
            if failed and step is not take_down:
                continue
            begun = time.monotonic()
            try:
                seen = f"[green]✓[/green] {escape(step(stack))}"
            except Exception as error:  # whatever it was, the stack is taken down and the table shown
                failed, seen = True, f"[red]✗[/red] {escape(str(error))}"
            took = time.monotonic() - begun
            table.add_row(name, f"{took:.0f}", seen)
            console.print(f"{name}: {took:.0f} s, {seen}", soft_wrap=True, markup=True)
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
