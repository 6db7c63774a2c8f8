"""`make compose-check`: bring docker-compose.yaml up for real, use it, break it, upgrade it, take it down.

It builds the images, waits for health, requests a prediction of every model and trains one model through Airflow. Then
it kills every container and upgrades all of them under traffic. Every answered request must be in the log exactly once.
`make compose-check NAME=profiles` checks the profiles in the same way: monitoring, load, replicas, scale. The check has
its own project, volumes, ports and secrets. It prints a table and exits with 1 if a step fails.

It crashes containers by SIGKILL from outside and needs the rights for that: root's, with the usual engine.
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
from deploy.compose_stack import CONTAINER_PATIENCE, ONE_SHOT, PROJECT, Stack
from deploy.compose_traffic import Target, Traffic
from pipelines.spec import find_spec, model_names
from stack.programs.airflow_client import Airflow
from utils.patience import Patience

TAKE_2_GB = "python -c 'bytearray(1) * 2**31'; test $? = 137"  # 137: killed by the kernel for its memory
RATE = 50.0  # requests a second while containers are killed and replaced
console = Console()


def targets(stack: Stack) -> list[Target]:
    """The services of all models."""
    specs = [find_spec(stack.models, name) for name in model_names(stack.models)]
    return [Target(stack.url(spec.name), example(spec), spec.entity) for spec in specs]


def account(stack: Stack, traffic: Traffic) -> str:
    """Compare the answered requests with the log.

    Raises: RuntimeError if an answered prediction is not in the log exactly once, or if no request was answered.
    """
    outcome = traffic.account(stack.settings)
    if outcome.lost or outcome.twice or not outcome.answered:
        raise RuntimeError(str(outcome))
    return str(outcome)


def build(stack: Stack) -> str:
    take_down(stack)  # the containers of an interrupted check
    stack.make_standins()
    stack.compose("build")
    images = {stack.services[name]["image"] for name in stack.default_services if "build" in stack.services[name]}
    sizes = {image: int(stack.docker("image", "inspect", "-f", "{{.Size}}", image)) for image in sorted(images)}
    return ", ".join(f"{image} {size / 1e9:.2f} GB" for image, size in sizes.items())


def bring_up(stack: Stack) -> str:
    stack.compose("up", "-d")
    stack.wait_until_ready(stack.default_services)
    return f"{len(stack.default_services)} containers as they should be"


def ask(stack: Stack) -> str:
    """Request one prediction of every model."""
    traffic = Traffic(targets(stack), stack.settings.api_key.get_secret_value(), rate=10)
    with traffic:
        services = [name for name in stack.default_services if name.startswith("serve-")]
        patience = Patience(
            "an answer of every model",
            lambda: (len(traffic.answered), stack.work(services)),
            seconds=CONTAINER_PATIENCE,
            state=lambda: traffic.failed[-1:],
        )
        patience.until(lambda: len(traffic.answered) >= len(traffic.targets))
    if traffic.failed:  # requests go to the models in turn, so without a failure every model has answered
        raise RuntimeError(traffic.failed[0])
    return account(stack, traffic)


def train(stack: Stack) -> str:
    airflow = Airflow(stack.settings)
    run = airflow.trigger("churn_training", {"reason": "compose-check", "trials": 2})
    profiles.require_success(airflow, "churn_training", run)
    return "churn_training success"


def kill_each(stack: Stack) -> str:
    """Crash the first process of each container. The restart policy must start it again."""
    services = [name for name in stack.default_services if name not in ONE_SHOT]
    with Traffic(targets(stack), stack.settings.api_key.get_secret_value(), RATE) as traffic:
        for name in services:
            stack.crash(stack.containers(name)[0])
            stack.wait_until_ready([name])
        stack.wait_until_ready(stack.default_services)
    return f"{len(services)} containers came back; {account(stack, traffic)}"


def upgrade(stack: Stack) -> str:
    """Build images of another commit, which replaces every container of ours."""
    before = stack.containers("serve-churn")
    with Traffic(targets(stack), stack.settings.api_key.get_secret_value(), RATE) as traffic:
        stack.compose("up", "-d", "--build", EVERGREEN_COMMIT="upgraded")
        stack.wait_until_ready(stack.default_services)
    if stack.containers("serve-churn") == before:
        raise RuntimeError("serve-churn was not exchanged")
    return account(stack, traffic)


def memory(stack: Stack) -> str:
    """Check that no container reached its memory limit, and that a container beyond its limit is killed.

    Raises: RuntimeError if a container has no limit, was killed at its limit, or survives beyond it.
    """
    stack.compose("run", "--rm", "--no-deps", "-T", "serve-churn", "sh", "-c", TAKE_2_GB)
    results = ["2 GB in a container of 1 GB: killed"]
    for name in (service for service in stack.default_services if service not in ONE_SHOT):
        [container] = stack.containers(name)
        limit = int(stack.docker("inspect", "-f", "{{.HostConfig.Memory}}", container))
        used, _ = stack.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", container).split(" / ")
        if not limit or stack.state(container)["OOMKilled"]:
            raise RuntimeError(f"{name}: limit {limit}, {stack.state(container)}")
        results.append(f"{name} {used} of {limit / 2**20:.0f}MiB")
    return ", ".join(results)


def take_down(stack: Stack) -> str:
    stack.compose("down", "--volumes", "--timeout", "60", profiles=profiles.NAMES)
    remaining = stack.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
    if remaining:
        raise RuntimeError(f"containers are left: {remaining}")
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
    """Run the steps and print the table. Return exit code 1 if a step failed."""
    steps: dict[str, Any] = {**BEGIN, **(PROFILES if arguments == ["profiles"] else USE), "down": take_down}
    table, failed = Table(title="compose-check"), False
    for heading in ("step", "seconds", "what was seen"):
        table.add_column(heading, overflow="fold")
    with tempfile.TemporaryDirectory(prefix="eg-compose-") as folder:
        stack = Stack(Path(folder))
        for name, step in steps.items():
            if failed and step is not take_down:
                continue
            began = time.monotonic()
            try:
                result = f"[green]✓[/green] {escape(step(stack))}"
            except Exception as error:  # after any error the stack is taken down and the table shown
                failed, result = True, f"[red]✗[/red] {escape(str(error))}"
            seconds = time.monotonic() - began
            table.add_row(name, f"{seconds:.0f}", result)
            console.print(f"{name}: {seconds:.0f} s, {result}", soft_wrap=True, markup=True)
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
