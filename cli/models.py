"""The commands `models`, `train`, `deploy`, `rollback` and `lineage`."""

import time
from typing import Annotated, Any
from uuid import UUID, uuid4

import typer

from cli.output import Json, as_json, as_table, err, out
from db.history import deployments, trainings
from db.session import session
from pipelines.spec import Feature, find_spec, load_spec, model_names
from utils.clock import utc_now
from utils.errors import DataRefused, DeploymentFailed, NotFound
from utils.settings import Settings, load_settings

Model = Annotated[str, typer.Argument(help="Name of a model: a file in models/ without its ending.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (models, train, deploy, rollback, lineage):
        app.command()(command)


def models(
    model: Annotated[str | None, typer.Argument(help="Only this one, with its features.")] = None, json: Json = False
) -> None:
    """List the models, or show what one model file means.

    Examples:

        evergreen models

        evergreen models credit_score --json
    """
    settings = load_settings()
    if model:
        spec = find_spec(settings.models_dir, model)
        if json:
            return as_json(spec.to_json())
        out.print(f"[bold]{spec.name}[/bold]: {spec.description}\n{spec.task}, spec {spec.hash[:12]}")
        return as_table([_feature_row(name, feature) for name, feature in spec.features.columns.items()])
    rows = [_model_row(settings, name) for name in model_names(settings.models_dir)]
    return as_json(rows) if json else as_table(rows)


def train(
    model: Model,
    window_end: Annotated[
        str | None, typer.Option(help="Learn from what was known at this instant, UTC. Empty: now.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Points of the search space to try. Empty: the model file's.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; it stands in the decision's row.")] = "by hand",
    airflow: Annotated[bool, typer.Option("--airflow", help="Let Airflow do it: trigger the DAG and return.")] = False,
    json: Json = False,
) -> None:
    """Train a candidate and decide whether it may serve. Nothing is deployed: `evergreen deploy` does that.

    Examples:

        evergreen train credit_score --reason "new bureau data"

        evergreen train credit_score --window-end 2026-06-30 --trials 2

        evergreen train credit_score --airflow
    """
    settings = load_settings()
    spec = find_spec(settings.models_dir, model)
    if airflow:
        from stack.programs.airflow_client import Airflow

        conf = {"window_end": window_end, "trials": trials, "reason": reason}
        run_id = Airflow(settings).trigger(f"{model}_training", conf)
        return as_json({"run_id": run_id}) if json else out.print(f"triggered {model}_training, run {run_id}")
    from pipelines.runs.training_runs import parse_window_end
    from pipelines.training import training_steps

    if spec.source.query:
        summary = training_steps.pull(settings, spec, caused_by="evergreen train", now=utc_now())
        err.print(f"pulled {summary}")
    now = utc_now()
    end = parse_window_end(window_end) if window_end else now
    run_id = f"cli/{now:%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"
    training_steps.begin(settings, spec, run_id=run_id, reason=reason, window_end=end, trials=trials, now=now)
    verdict = _train(settings, run_id, quiet=json)
    if json:
        return as_json(verdict)
    if verdict["verdict"] == "promote":
        out.print(f"put it into service with: evergreen deploy {model}")
    return None


def deploy(
    model: Model,
    version: Annotated[int | None, typer.Argument(help="A version in MLflow. Empty: the candidate that waits.")] = None,
    reason: Annotated[str, typer.Option(help="Why; it stands in the deployment's row.")] = "by hand",
    json: Json = False,
) -> None:
    """Put a version into service and wait until every living worker serves it; go back where that fails.

    Examples:

        evergreen deploy credit_score

        evergreen deploy credit_score 3 --reason "audit"
    """
    from pipelines.deployment import promote
    from pipelines.deployment.rollout import roll_out, undo, wait_until_live

    settings, run_id, decision = load_settings(), f"cli/{uuid4().hex[:8]}", None
    find_spec(settings.models_dir, model)
    if version is None:
        candidate = promote.claim(settings, model=model, run_id=run_id, now=utc_now())
        decision, reason = candidate["decision"], f"{reason}; {candidate['why']}"
        version = promote.promote(settings, decision_id=decision)
    roll_out(
        settings, model=model, version=version, caused_by=run_id, reason=reason, now=utc_now(), decision_id=decision
    )
    try:
        wait_until_live(settings, model=model, version=version, caused_by=run_id)
    except DeploymentFailed:
        undo(settings, model=model, caused_by=run_id, now=utc_now())
        raise
    _print_serving(model, version, json=json)


def rollback(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; it stands in the deployment's row.")] = "by hand",
    json: Json = False,
) -> None:
    """Make the version before serve again, MLflow's aliases included.

    Examples:

        evergreen rollback credit_score --reason "complaints since Tuesday"
    """
    from pipelines.deployment.rollout import roll_back, wait_until_live

    settings, run_id = load_settings(), f"cli/{uuid4().hex[:8]}"
    find_spec(settings.models_dir, model)
    version = roll_back(settings, model=model, caused_by=run_id, reason=reason, now=utc_now())
    if version is None:
        raise NotFound(what=f"version of {model} before the one that serves")
    wait_until_live(settings, model=model, version=version, caused_by=run_id)
    _print_serving(model, version, json=json)


def lineage(
    prediction_id: Annotated[str, typer.Argument(help="The prediction_id of an answer.")], json: Json = False
) -> None:
    """From a prediction back to its version, run, snapshot and commit.

    Examples:

        evergreen lineage 01a1fb67-1800-7000-8000-000000000000
    """
    try:
        logged_id = str(UUID(prediction_id))
    except ValueError:
        raise DataRefused(f"{prediction_id!r} is not a prediction_id: those are UUIDs") from None
    with session(load_settings(), "reader") as connection:
        row = trainings.lineage(connection, logged_id)
    if row is None:
        raise NotFound(what=f"prediction {logged_id}", where="the log")
    if json:
        return as_json(dict(row))
    for name, value in row.items():
        out.print(f"{name.replace('_', ' '):>20}  {'' if value is None else value}", soft_wrap=True)
    return None


def _train(settings: Settings, run_id: str, *, quiet: bool) -> dict[str, Any]:
    """Run all steps of a training and print a line for each. Return the row of the verdict."""
    from pipelines.training import training_steps

    with err.status("") as status:
        started_at = time.monotonic()

        def progress(step: str, result: training_steps.StepResult | None) -> None:
            nonlocal started_at
            if result is None:
                started_at = time.monotonic()
                status.update(f"{step} …")
            elif not quiet:
                seconds = time.monotonic() - started_at
                out.print(f"{step:<9} {seconds:6.1f} s  {result.summary}", soft_wrap=True, markup=False)

        return training_steps.run_all_steps(settings, run_id, progress=progress)


def _model_row(settings: Settings, name: str) -> dict[str, object]:
    spec = load_spec(settings.models_dir / f"{name}.yaml")
    with session(settings, "reader") as connection:
        serving = deployments.champion(connection, name)
    return {
        "model": name,
        "task": spec.task,
        "features": len(spec.features.columns),
        "version": serving["version"] if serving else None,
        "since": serving["created_at"] if serving else None,
        "description": spec.description,
    }


def _feature_row(name: str, feature: Feature) -> dict[str, object]:
    unit = getattr(feature, "unit", "")
    return {
        "feature": name,
        "type": feature.type,
        "unit": unit,
        "allowed": _allowed(feature),
        "about": feature.description,
    }


def _allowed(feature: Feature) -> str:
    if values := getattr(feature, "values", ()):
        return ", ".join(values)
    low, high = getattr(feature, "min", None), getattr(feature, "max", None)
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'} … {'' if high is None else f'{high:g}'}"


def _print_serving(model: str, version: int, *, json: bool) -> None:
    as_json({"model": model, "version": version}) if json else out.print(f"{model}: version {version} serves")
