"""`make compose-check`: check docker-compose.yaml with real containers.

The check builds the images, starts the containers and waits until they are healthy. It requests a prediction of every
model and trains one model in Airflow. While requests are sent, it kills every container and then upgrades all of them.
Every answered request must be in the log exactly once. `make compose-check NAME=profiles` checks the profiles:
monitoring, load, replicas, scale. The check has its own project, volumes, ports and secrets. It prints a table, and
exits with 1 if a step fails.

The check kills the processes of containers with SIGKILL. With the usual engine only root may do that.
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
from deploy.compose_stack import CONTAINER_PATIENCE, ONE_SHOT, PROJECT, ComposeStack
from deploy.compose_traffic import Target, UnretriedTraffic
from pipelines.spec import find_spec, model_names
from stack.programs.airflow_client import Airflow
from utils.patience import Patience

ALLOCATE_2_GB = "python -c 'bytearray(1) * 2**31'; test $? = 137"  # 137: the kernel killed it for its memory
RATE = 50.0  # requests per second while containers are killed and replaced
console = Console()


def targets(stack: ComposeStack) -> list[Target]:
    """The services of all models."""
    specs = [find_spec(stack.models, name) for name in model_names(stack.models)]
    return [Target(stack.url(spec.name), example(spec), spec.entity) for spec in specs]


def require_logged(stack: ComposeStack, traffic: UnretriedTraffic) -> str:
    """Check that every answered request is in the log exactly once. Return the counts as text.

    Raises: RuntimeError if this is not the case, or if no request was answered.
    """
    outcome = traffic.compare_with_log(stack.settings)
    if outcome.lost or outcome.twice or not outcome.answered:
        raise RuntimeError(str(outcome))
    return str(outcome)


def build(stack: ComposeStack) -> str:
    take_down(stack)  # removes the containers of an interrupted check
    stack.build_replacements()
    stack.compose("build")
    images = {stack.services[name]["image"] for name in stack.default_services if "build" in stack.services[name]}
    sizes = {image: int(stack.docker("image", "inspect", "-f", "{{.Size}}", image)) for image in sorted(images)}
    return ", ".join(f"{image} {size / 1e9:.2f} GB" for image, size in sizes.items())


def bring_up(stack: ComposeStack) -> str:
    stack.compose("up", "-d")
    stack.wait_until_ready(stack.default_services)
    return f"{len(stack.default_services)} containers as they should be"


def predict_each(stack: ComposeStack) -> str:
    """Request one prediction of every model."""
    traffic = UnretriedTraffic(targets(stack), stack.settings.api_key.get_secret_value(), rate=10)
    with traffic:
        services = [name for name in stack.default_services if name.startswith("serve-")]
        patience = Patience(
            "an answer of every model",
            lambda: (len(traffic.answered), stack.work(services)),
            seconds=CONTAINER_PATIENCE,
            state=lambda: traffic.failed[-1:],
        )
        patience.until(lambda: len(traffic.answered) >= len(traffic.targets))
    if traffic.failed:  # without a failure every model has answered, because the models get requests in rotation
        raise RuntimeError(traffic.failed[0])
    return require_logged(stack, traffic)


def train(stack: ComposeStack) -> str:
    airflow = Airflow(stack.settings)
    run = airflow.trigger("churn_training", {"reason": "compose-check", "trials": 2})
    profiles.require_success(airflow, "churn_training", run)
    return "churn_training success"


def kill_each(stack: ComposeStack) -> str:
    """Crash the first process of each container. The restart policy must start it again."""
    services = [name for name in stack.default_services if name not in ONE_SHOT]
    with UnretriedTraffic(targets(stack), stack.settings.api_key.get_secret_value(), RATE) as traffic:
        for name in services:
            stack.crash(stack.containers(name)[0])
            stack.wait_until_ready([name])
        stack.wait_until_ready(stack.default_services)
    return f"{len(services)} containers came back; {require_logged(stack, traffic)}"


def upgrade(stack: ComposeStack) -> str:
    """Build the images for another commit, so that every container of our images is replaced."""
    old_containers = stack.containers("serve-churn")
    with UnretriedTraffic(targets(stack), stack.settings.api_key.get_secret_value(), RATE) as traffic:
        stack.compose("up", "-d", "--build", EVERGREEN_COMMIT="upgraded")
        stack.wait_until_ready(stack.default_services)
    if stack.containers("serve-churn") == old_containers:
        raise RuntimeError("the container of serve-churn was not replaced")
    return require_logged(stack, traffic)


def memory(stack: ComposeStack) -> str:
    """Check that no container was killed for its memory, and that a container that exceeds its limit is killed.

    Raises: RuntimeError if a container has no limit, was killed for its memory, or can exceed its limit.
    """
    stack.compose("run", "--rm", "--no-deps", "-T", "serve-churn", "sh", "-c", ALLOCATE_2_GB)
    results = ["2 GB in a container of 1 GB: killed"]
    for name in (service for service in stack.default_services if service not in ONE_SHOT):
        [container] = stack.containers(name)
        limit = int(stack.docker("inspect", "-f", "{{.HostConfig.Memory}}", container))
        used, _ = stack.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", container).split(" / ")
        if not limit or stack.state(container)["OOMKilled"]:
            raise RuntimeError(f"{name}: limit {limit}, {stack.state(container)}")
        results.append(f"{name} {used} of {limit / 2**20:.0f}MiB")
    return ", ".join(results)


def take_down(stack: ComposeStack) -> str:
    stack.compose("down", "--volumes", "--timeout", "60", profiles=profiles.PROFILE_NAMES)
    remaining = stack.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
    if remaining:
        raise RuntimeError(f"containers are left: {remaining}")
    return "nothing is left"


Step = Callable[[ComposeStack], str]
START_STEPS: dict[str, Step] = {"build": build, "up": bring_up}
DEFAULT_STEPS: dict[str, Step] = {
    "one prediction per model": predict_each,
    "one training": train,
    "every container killed": kill_each,
    "upgrade": upgrade,
    "memory": memory,
}
PROFILE_STEPS: dict[str, Step] = {
    "rules and dashboards": profiles.check_monitoring,
    "load by locust": profiles.check_load,
    "two replicas": profiles.check_replicas,
    "two workers": lambda stack: profiles.check_scale(stack, console),
}


def main(arguments: list[str]) -> int:
    """Run the steps and print the table. Return exit code 1 if a step failed."""
    main_steps = PROFILE_STEPS if arguments == ["profiles"] else DEFAULT_STEPS
    steps: dict[str, Any] = {**START_STEPS, **main_steps, "down": take_down}
    table, failed = Table(title="compose-check"), False
    for heading in ("step", "seconds", "what was seen"):
        table.add_column(heading, overflow="fold")
    with tempfile.TemporaryDirectory(prefix="eg-compose-") as folder:
        stack = ComposeStack(Path(folder))
        for name, step in steps.items():
            if failed and step is not take_down:
                continue
            start = time.monotonic()
            try:
                result = f"[green]✓[/green] {escape(step(stack))}"
            except Exception as error:  # after any error the stack is taken down and the table is printed
                failed, result = True, f"[red]✗[/red] {escape(str(error))}"
            seconds = time.monotonic() - start
            table.add_row(name, f"{seconds:.0f}", result)
            console.print(f"{name}: {seconds:.0f} s, {result}", soft_wrap=True, markup=True)
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
