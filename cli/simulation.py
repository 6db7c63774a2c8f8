"""The command `evergreen simulate`: it sends traffic from an example world, to try out the platform."""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import as_json, err, out
from pipelines.spec import find_spec
from stack.example_data.scenario_names import Scenario
from utils.clock import as_utc, utc_now
from utils.duration import UNITS, parse_duration
from utils.settings import load_settings

if TYPE_CHECKING:
    from stack.demo.simulate import Summary


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(simulate)


def simulate(
    model: Annotated[str, typer.Argument(help="A model with an example world.")],
    scenario: Annotated[
        Scenario,
        typer.Option(help="What changes: values rise, the rule changes, both, the class mix shifts, a source breaks."),
    ] = Scenario.NONE,
    requests: Annotated[
        int, typer.Option(min=0, max=50_000, help="How many people ask; 0 only loads labels that are due by now.")
    ] = 1_000,
    rate: Annotated[float, typer.Option(min=0.1, max=1_000, help="Requests a second.")] = 20.0,
    at: Annotated[
        str | None,
        typer.Option(help="When the scenario begins: a time or day, UTC, or how long from now, as 2m. Empty: at once."),
    ] = None,
    labels_after: Annotated[
        str | None, typer.Option(help="How late labels arrive, as 30s or 2h. Empty: the model's maturity.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Who asks. Empty: somebody new each time.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of sentences.")] = False,
) -> None:
    """Send traffic from the example world to the running service, and load its features and late labels.

    Everybody who asks is new and asks once. Labels due more than five minutes after the last request are kept, and
    loaded by the next simulation that runs when they are due.

    Examples:

        evergreen simulate credit_score --requests 500 --rate 50

        evergreen simulate credit_score --scenario covariate --at 1m --labels-after 30s

        evergreen simulate credit_score --requests 0
    """
    from stack.demo.simulate import simulate as run

    settings = load_settings()
    summary = run(
        settings,
        find_spec(settings.models_dir, model),
        scenario=scenario,
        requests=requests,
        rate=rate,
        seed=seed,
        since=_moment(at),
        labels_after=_duration(labels_after, "--labels-after") if labels_after else None,
        console=None if json else err,
    )
    as_json(asdict(summary)) if json else _print_summary(summary)


def _moment(text: str | None) -> datetime | None:
    """Return `text`, an instant or a duration from now, as a time in UTC."""
    if text is None:
        return None
    try:
        return utc_now() + _duration(text, "--at") if text[-1:] in UNITS else as_utc(datetime.fromisoformat(text))
    except ValueError:
        expected = f"expected a time like 2026-01-31T12:00, or a duration like 2m, got {text!r}"
        raise typer.BadParameter(expected, param_hint="--at") from None


def _duration(text: str, option: str) -> timedelta:
    try:
        length = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    assert isinstance(length, timedelta)  # noqa: S101  (it was text)
    return length


def _print_summary(summary: "Summary") -> None:
    pace = summary.answered / summary.seconds if summary.seconds else 0.0
    versions = ", ".join(f"{count:,} by version {version}" for version, count in summary.versions.items())
    out.print(
        f"{summary.answered:,} of {summary.requests:,} requests answered in {summary.seconds:.0f} s "
        f"({pace:.0f} a second)" + (f": {versions}" if versions else ""),
        soft_wrap=True,
    )
    if summary.scenario != Scenario.NONE:
        out.print(f"{summary.changed:,} of them under the scenario {summary.scenario}; seed {summary.seed}")
    if summary.refusal:
        out.print(f"{summary.refused:,} refused, the first with: {summary.refusal}", markup=False, soft_wrap=True)
    out.print(f"{summary.feature_rows:,} feature rows and {summary.label_rows:,} labels loaded")
    if summary.labels_due:
        out.print(
            f"{summary.labels_waiting:,} labels wait, the last until {summary.labels_due:%Y-%m-%d %H:%M:%S} UTC; then "
            f"`evergreen simulate {summary.model} --requests 0` loads them",
            soft_wrap=True,
        )
