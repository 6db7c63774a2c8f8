"""The command `evergreen replay`: it runs the pipelines over a past period."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import as_json, as_table, err, out
from utils.settings import load_settings

if TYPE_CHECKING:
    from pipelines.replay import Replay, Step


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(replay)


def replay(
    model: Annotated[str, typer.Argument(help="Name of a model: a file in models/ without its ending.")],
    start: Annotated[str, typer.Option("--from", help="Window end of the first training, UTC.")],
    end: Annotated[str, typer.Option("--to", help="Score labels up to this instant, UTC.")],
    every: Annotated[str, typer.Option(help="From one training to the next: 1mo, 7d, 12h.")] = "1mo",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Points of the search space to try. Empty: the model file's.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Walk the pipelines through a past period: train, decide, promote at each step; score what would have served.

    Only the window end moves. Beside each step's metric stands that of the first version, had it been left alone. What
    serves is not touched: a replay has a name of its own in MLflow and in the histories.

    Examples:

        evergreen replay credit_score --from 2026-06-01 --to 2026-09-01 --every 1mo

        evergreen replay credit_score --from 2026-06-01 --to 2026-09-01 --every 14d --trials 3 --json
    """
    from pipelines.replay import replay as run_replay
    from pipelines.runs.training_runs import parse_window_end
    from pipelines.spec import find_spec

    settings = load_settings()
    spec = find_spec(settings.models_dir, model)
    first, last = parse_window_end(start), parse_window_end(end)
    with err.status(f"replay of {model} …") as status:
        result = run_replay(
            settings,
            spec=spec,
            start=first,
            end=last,
            every=every,
            trials=trials,
            progress=lambda text: status.update(text),
        )
    if json:
        return as_json({**asdict(result), "ratio": ratio(result)})
    as_table([_row(step) for step in result.steps], title=f"{result.metric} of {model}, replayed as {result.name}")
    for step in result.steps:
        if step.verdict != "promote":
            out.print(f"{step.window_end:%Y-%m-%d} {step.verdict}: {step.reason}", soft_wrap=True, markup=False)
    out.print(
        f"in all, over {result.rows:,} labels: {result.metric} {result.served:.4g} served, {result.left_alone:.4g} "
        f"with the first version left alone; that is {ratio(result):.2f} of it",
        soft_wrap=True,
    )
    return None


def ratio(result: "Replay") -> float:
    return result.served / result.left_alone


def _row(step: "Step") -> dict[str, object]:
    return {
        "from": f"{step.window_end:%Y-%m-%d}",
        "verdict": step.verdict,
        "version": step.version,
        "learned": step.learned_from,
        "labels": step.rows,
        "served": None if step.served is None else f"{step.served:.4g}",
        "left alone": None if step.left_alone is None else f"{step.left_alone:.4g}",
    }
