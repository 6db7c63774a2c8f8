"""The commands `why` and `history`: the decisions on a model and its deployments, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cli.output import Json, as_json, as_table, out
from pipelines.spec import find_spec
from utils.settings import load_settings

Model = Annotated[str, typer.Argument(help="Name of a model: a file in models/ without its ending.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(why)
    app.command()(history)


def why(model: Model, json: Json = False) -> None:
    """Say why the model is as it is: the last decisions to train, promote and deploy, with what they went by.

    Examples:

        evergreen why credit_score

        evergreen why credit_score --json
    """
    from pipelines import wording

    settings = load_settings()
    find_spec(settings.models_dir, model)
    decisions = wording.explain(settings, model)
    if json:
        return as_json(asdict(decisions))
    _print_section(
        "Training", wording.describe_retraining(decisions.training) if decisions.training else "none was asked for yet."
    )
    if decisions.training:
        _print_evidence(decisions.training)
    _print_section(
        "Promotion",
        wording.describe_promotion(decisions.promotion) if decisions.promotion else "no candidate was judged yet.",
    )
    if decisions.promotion:
        _print_gates(decisions.promotion["gates"])
    _print_section(
        "Deployment",
        wording.describe_deployment(decisions.deployment) if decisions.deployment else "nothing was deployed yet.",
    )
    if decisions.hold:
        _print_section("Since then", wording.describe_retraining(decisions.hold))
        _print_evidence(decisions.hold)
    return None


def history(model: Model, json: Json = False) -> None:
    """Tell what served when, why, and by whom or what; the newest first, times in UTC.

    Examples:

        evergreen history credit_score

        evergreen history credit_score --json
    """
    from pipelines import wording

    settings = load_settings()
    find_spec(settings.models_dir, model)
    rows = wording.serving_history(settings, model)
    if json:
        return as_json(rows)
    if not rows:
        out.print(f"{model} has served nothing yet")
    for row in rows:
        until = wording.format_time(row["until"]) if row["until"] else "now"
        out.print(
            f"[bold]version {row['version']}[/bold]  {wording.format_time(row['since'])} to {until}",
            soft_wrap=True,
        )
        _print_line("how", f"{row['action']}; {wording.describe_outcome(row)}")
        _print_line("why", row["reason"])
        if row["promoted_because"] and row["promoted_because"] not in row["reason"]:
            _print_line("promoted", row["promoted_because"])
        if row["trained_because"]:
            _print_line("trained", f"{row['trained_because']} (run {row['run_id']})")
        _print_line("by", row["caused_by"])
    return None


def _print_section(title: str, words: str) -> None:
    out.print(f"[bold]{title}[/bold] ", end="")
    out.print(words, markup=False, soft_wrap=True)


def _print_evidence(decision: Mapping[str, Any]) -> None:
    from pipelines.wording import evidence_lines

    for name, value in evidence_lines(decision["evidence"]):
        _print_line(name, value)
    if decision.get("alert"):
        _print_line("alert", decision["alert"])


def _print_line(name: str, value: str) -> None:
    out.print(f"{name:>15}  {value}", markup=False, soft_wrap=True)


def _print_gates(gates: Sequence[Mapping[str, Any]]) -> None:
    """Print every gate. Gates of slices are printed only if they did not pass."""
    listed = [gate for gate in gates if not (gate["passed"] and gate["name"].startswith("slice."))]
    if listed:
        as_table([_gate(gate) for gate in listed])
    if len(listed) < len(gates):
        out.print(f"and {len(gates) - len(listed)} slice(s) passed")


def _gate(gate: Mapping[str, Any]) -> dict[str, str]:
    passed = {True: "yes", False: "no", None: "not known"}[gate["passed"]]
    value, threshold = ("" if number is None else f"{number:,.4g}" for number in (gate["value"], gate["threshold"]))
    return {"gate": gate["name"], "found": value, "asked": threshold, "passed": passed}
