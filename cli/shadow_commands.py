"""The commands `shadow` and `compare` for a challenger that scores the same requests as the champion."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from cli.output import Json, as_json, as_table, err, out
from pipelines.spec import find_spec
from utils.clock import utc_now
from utils.errors import DataRefused
from utils.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.monitoring.comparison import Comparison

Model = Annotated[str, typer.Argument(help="Name of a model: a file in models/ without its ending.")]
MAX_ROWS = 10  # rows of a table


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(shadow)
    app.command()(compare)


def shadow(
    model: Model,
    version: Annotated[int | None, typer.Argument(help="A version in MLflow. Empty: show what scores along.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End it.")] = False,
    json: Json = False,
) -> None:
    """Let a version score along with the one that serves. Clients never see it; `evergreen compare` does.

    Each answered row is scored once more when the machine has nothing else to do, and logged with role `shadow`; rows
    that come faster than that are left out.

    Examples:

        evergreen shadow credit_score 4

        evergreen shadow credit_score

        evergreen shadow credit_score --stop
    """
    from pipelines.deployment import shadow as shadows

    settings, caused_by = load_settings(), f"cli/{uuid4().hex[:8]}"
    find_spec(settings.models_dir, model)
    if stop and version is not None:
        raise DataRefused("give a version or --stop, not both")
    if stop:
        stopped = shadows.stop(settings, model=model, caused_by=caused_by, now=utc_now())
        return (
            as_json({"model": model, "stopped": stopped})
            if json
            else out.print(f"{model}: version {stopped} is in the shadow no more; its predictions stay in the log")
        )
    if version is not None:
        shadows.start(settings, model=model, version=version, caused_by=caused_by, now=utc_now())
    running = shadows.current(settings, model)
    if running is None:
        return (
            as_json({"model": model, "version": None}) if json else out.print(f"{model}: no version is in the shadow")
        )
    workers = _workers(settings, model)
    if json:
        return as_json(
            {"model": model, "version": running["version"], "since": running["created_at"], "workers": workers}
        )
    out.print(
        f"{model}: version {running['version']} is in the shadow since {running['created_at']:%Y-%m-%d %H:%M:%S} UTC"
    )
    if version is not None:
        return out.print(f"workers fetch it now: `evergreen shadow {model}` shows whether they score it")
    return as_table(workers) if workers else out.print(f"no service of {model} is alive")


def _workers(settings: Settings, model: str) -> list[dict[str, Any]]:
    """Return the living workers of `model` with the version that each scores in the shadow, or why it refuses it."""
    from pipelines.deployment import shadow as shadows

    return [
        {"host": row["host"], "pid": row["pid"], "scores": row["shadow_version"], "refuses": row["shadow_refused"]}
        for row in shadows.workers(settings, model)
    ]


def compare(
    model: Model,
    version: Annotated[int | None, typer.Option(help="The challenger. Empty: the last one in the shadow.")] = None,
    since: Annotated[str | None, typer.Option(help="From this instant on, UTC. Empty: since it is there.")] = None,
    json: Json = False,
) -> None:
    """Show how a version in the shadow differs from what was answered: how often, where, how fast, and who was right.

    Examples:

        evergreen compare credit_score

        evergreen compare credit_score --version 4 --since 2026-06-30T12:00:00 --json
    """
    from pipelines.monitoring import comparison as comparisons
    from pipelines.runs.training_runs import parse_window_end

    settings = load_settings()
    spec = find_spec(settings.models_dir, model)
    start = parse_window_end(since) if since else None
    with err.status("reading the log …") as status:

        def show(count: int) -> None:
            status.update(f"reading the log: {count:,} predictions …")

        comparison = comparisons.compare_versions(
            settings, spec, version=version, since=start, now=utc_now(), progress=show
        )
    if json:
        return as_json(asdict(comparison))
    return _print_comparison(comparison)


def _print_comparison(result: "Comparison") -> None:
    answered = sum(result.answered.values())
    against = ", ".join(f"{number} ({rows:,})" for number, rows in sorted(result.answered.items()))
    span = f"{result.since:%Y-%m-%d %H:%M:%S} to {result.until:%Y-%m-%d %H:%M:%S} UTC"
    out.print(f"[bold]{result.model}: version {result.version}[/bold] in the shadow, {span}", soft_wrap=True)
    out.print(
        f"{answered:,} answered by version {against}; {result.pairs:,} ({result.pairs / answered:.1%}) scored along"
    )
    if result.agreement is not None:
        out.print(f"the same class in {result.agreement:.2%}")
        changes = [{**row, "share": f"{row['rows'] / result.pairs:.2%}"} for row in result.changes]
        _table(changes, "Where they differ")
    if result.difference is not None:
        out.print(", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in result.difference.items()))
    measure, number_format = ("mean difference", ",.4g") if result.agreement is None else ("other class", ".2%")
    slices = [
        {"column": s.column, "level": s.level, "rows": f"{s.rows:,}", measure: format(s.apart, number_format)}
        for s in result.slices
    ]
    _table(slices, "By slice, the largest difference first")
    rows = [
        {"latency, ms": side, **{name: f"{value:.3g}" for name, value in quantiles.items()}}
        for side, quantiles in result.latency_ms.items()
    ]
    as_table(rows)
    if judged := result.judged:
        better = judged.better_by
        out.print(
            f"{judged.metric} on {judged.labels:,} with a known truth: champion {judged.champion:.4f}, "
            f"challenger {judged.challenger:.4f}, better by {better.value:+.4f} "
            f"[{better.low:+.4f}, {better.high:+.4f}] (95%)",
            markup=False,
            soft_wrap=True,
        )
    else:
        out.print("too few of them have a known truth yet to say which one is right")


def _table(rows: Sequence[dict[str, Any]], title: str) -> None:
    if rows:
        as_table(rows[:MAX_ROWS], title=title)
    if len(rows) > MAX_ROWS:
        out.print(f"and {len(rows) - MAX_ROWS} more: --json shows all")
