"""The command `evergreen demo`: it closes the loop live, on a separate stack."""

import time
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import as_json, as_table, err, out
from stack.example_data.scenario_names import Scenario
from utils.settings import load_settings

if TYPE_CHECKING:
    from stack.demo.play import Outcome


class DemoScenario(StrEnum):
    SHIFT = "shift"
    NONE = "none"
    BROKEN = "broken"


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(demo)


def demo(
    scenario: Annotated[
        DemoScenario, typer.Option(help="The world shifts, stays as it is, or a source of it breaks.")
    ] = DemoScenario.SHIFT,
    keep: Annotated[bool, typer.Option(help="Leave the stack running to look around until Enter is pressed.")] = False,
    since: Annotated[
        float | None, typer.Option(help="Unix time at which you began, to be counted into the time it took.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON document at the end; the story goes to stderr.")
    ] = False,
) -> None:
    """Close the loop live: traffic, a change of the world, drift, retraining, promotion, and the new version's answers.

    It takes a stack of its own, beside yours and on free ports, and stops it at the end. Exits with 1 where the loop
    did not close; with `none` where anything was retrained or promoted for drift; with `broken` where nobody was
    alerted, or the broken rows were learned from.

    Examples:

        evergreen demo

        evergreen demo --scenario none

        evergreen demo --scenario broken --json
    """
    from pipelines.spec import find_spec
    from stack.demo.own_stack import MODEL, changed_values, demo_stack, own_settings
    from stack.demo.play import play
    from stack.demo.webhook import webhook

    started_at, console, settings = since or time.time(), err if json else out, load_settings()
    with webhook() as (address, alerts):
        demo_settings = own_settings(settings, webhook=address)
        before = changed_values(find_spec(settings.models_dir, MODEL))
        with demo_stack(demo_settings, console=console, since=started_at) as spec:
            console.print(
                "\n[bold]From here on[/bold] the model file has shorter durations, and only what monitoring finds may "
                "start a training; nothing else differs:",
                soft_wrap=True,
            )
            for key, now in changed_values(spec).items():
                console.print(f"  {key:<26} {before[key]:>5} → {now}", soft_wrap=True)
            outcome = play(demo_settings, spec, scenario=Scenario(scenario), console=console, alerts=alerts)
            seconds = time.time() - started_at
            as_json({**asdict(outcome), "total_seconds": seconds}) if json else _print_outcome(outcome, seconds)
            if keep:
                console.input("\nEverything still runs, at the addresses above. Enter stops it. ")
    if outcome.problems:
        raise typer.Exit(1)


def _print_outcome(outcome: "Outcome", seconds: float) -> None:
    out.print()
    as_table(
        [{"seconds": f"{moment.after:+.1f}", "what": moment.what} for moment in outcome.timeline],
        title="What happened, counted from the change",
    )
    if quality := outcome.quality:
        rows = {"champion until then": quality.before, "new version": quality.after, "better by": quality.better_by}
        as_table(
            [
                {"": name, quality.metric: f"{e.value:.4f}", "from": f"{e.low:.4f}", "to": f"{e.high:.4f}"}
                for name, e in rows.items()
            ],
            title=f"On the same {quality.rows:,} rows of the new world, newer than what either learned from",
        )
    for problem in outcome.problems:
        out.print(f"[red]✗[/red] {problem}", soft_wrap=True)
    verdict = "[red]✗ not as promised[/red]" if outcome.problems else "[green]✓ as promised[/green]"
    out.print(f"{verdict}: scenario {outcome.scenario}, {outcome.seconds:.0f} s, {seconds:.0f} s with the start")
