"""The commands for the whole stack on one machine: `up`, `down`, `status`, `logs`, `clean`, `run` and `begin`."""

import time
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer

from cli.output import as_json, as_table, out
from utils.clock import utc_now
from utils.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (up, down, status, logs, clean, run, begin):
        app.command()(command)


def up(
    since: Annotated[
        float | None, typer.Option(help="Unix time at which you began, to be counted into the time it took.")
    ] = None,
) -> None:
    """Start everything, train and deploy the models that have no version yet, and show how to use it.

    Run again it changes nothing; with a new model file or a changed .env it changes what differs.

    Examples:

        evergreen up

        EVERGREEN_AIRFLOW_PORT=8081 evergreen up
    """
    from stack.up import up as bring_up

    bring_up(load_settings(), console=out, since=since)


def down() -> None:
    """Stop everything. Data, models and secrets stay; `evergreen up` continues with them.

    Example:

        evergreen down
    """
    from stack.down import down as stop_all

    started_at = time.monotonic()
    count = stop_all(load_settings())
    out.print(f"stopped {count} programs in {time.monotonic() - started_at:.1f} s" if count else "nothing ran")


def status(
    json: Annotated[bool, typer.Option("--json", help="One JSON document: {parts, models, pss_mb, healthy}.")] = False,
) -> None:
    """Show each part with its address, health and memory, and each model with the version it serves.

    Exits with 1 where a part is not healthy. Times are UTC.

    Examples:

        evergreen status

        evergreen status --json
    """
    from stack import status as current

    settings = load_settings()
    parts = [asdict(part) for part in current.parts(settings)]
    models = [asdict(model) for model in current.models(settings)]
    memory = round(sum(part["pss_mb"] or 0.0 for part in parts), 1)
    healthy = all(part["healthy"] for part in parts)
    if json:
        as_json({"parts": parts, "models": models, "pss_mb": memory, "healthy": healthy})
    else:
        as_table([_row(part) for part in parts], title="Parts")
        out.print(f"{memory:,.0f} MB in all (PSS: what is shared counts once)\n")
        if models:
            as_table(models, title="Models")
    if not healthy:
        raise typer.Exit(1)


def _row(part: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a part that fit into 80 characters."""
    healthy = "[green]yes[/green]" if part["healthy"] else "[red]no[/red]"
    up_for = _age(utc_now() - part["since"]) if part["since"] else ""
    return {"name": part["name"], "url": part["url"], "healthy": healthy, "MB": part["pss_mb"], "up": up_for}


def _age(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h" if minutes < 48 * 60 else f"{minutes // 1440}d"


def logs(
    part: Annotated[str | None, typer.Argument(help="A part as `evergreen status` names it; without: all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines of each log.")] = 20,
) -> None:
    """Show the last lines of the logs. Those of Airflow's tasks are in its pages.

    Examples:

        evergreen logs

        evergreen logs mlflow -n 100

        evergreen logs serve-credit_score -f
    """
    from stack.programs.logs import show

    show(load_settings(), part=part, lines=lines, follow=follow)


def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove .env, with its secrets, as well.")] = False,
) -> None:
    """Stop everything and remove its state: data, models, snapshots, logs. A team's own servers are not touched.

    Example:

        evergreen clean --yes
    """
    from stack.down import clean as remove_all

    settings = load_settings()
    env_text = f" and {settings.env_file}" if everything else ""
    if not yes:
        typer.confirm(f"Remove {settings.home}{env_text}, with all data and models in it?", abort=True)
    removed = remove_all(settings, secrets=everything)
    out.print(f"removed {' and '.join(removed)}" if removed else "there was nothing to remove")


def run(
    part: Annotated[str, typer.Argument(help="As `evergreen status` names it, or airflow-migrate.")],
) -> None:
    """Become one part of the stack, in the foreground: for containers, or a supervisor of yours.

    It listens on EVERGREEN_BIND. Variables that begin with AIRFLOW__ go before what Evergreen sets.

    Examples:

        evergreen run mlflow

        evergreen run airflow-scheduler
    """
    from stack.run_part import run as run_foreground

    run_foreground(load_settings(), part)


def begin() -> None:
    """Load example data, let Airflow work, and train and deploy the models that have no version yet.

    It is the last part of `evergreen up`, for a stack whose parts run elsewhere. Run again it changes nothing.

    Example:

        evergreen begin
    """
    from pipelines.spec import load_spec, model_names
    from stack.programs.airflow_client import Airflow
    from stack.progress import Steps
    from stack.up import begin_models, load_examples

    settings, started_at = load_settings(), time.time()
    specs = [load_spec(settings.models_dir / f"{name}.yaml") for name in model_names(settings.models_dir)]
    with Steps(out) as steps:
        load_examples(settings, specs, steps)
        Airflow(settings).wait_healthy(patience=60)
        begin_models(settings, specs, steps, begun=started_at)
