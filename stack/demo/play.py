"""The demonstration: send traffic, change the world, and print how the platform reacts.

Everything that is printed comes from rows that the platform wrote. This module neither decides nor trains.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event
from typing import Any

from rich.console import Console
from rich.markup import escape
from sqlalchemy import RowMapping

from db.history import deployments, timeline
from db.session import session
from pipelines.monitoring.windows import grid
from pipelines.runs.training_runs import load_run
from pipelines.spec import ModelSpec
from pipelines.training.evaluate import Estimate, load_evaluation
from stack.demo.simulate import simulate
from stack.demo.watch import Watch, words
from stack.example_data.scenario_names import Scenario
from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import activity
from utils.clock import utc_now
from utils.errors import StackError
from utils.settings import Settings

RATE = 32.0  # requests a second, so that a window of 20 s has the rows that monitoring needs
LATE = timedelta(seconds=3)  # delay of a label after its prediction
CALM = 2  # windows of the unchanged world that are judged before the change
JUDGED = 3  # windows after the change, as many as an alarm looks at; later windows bring no new decision
TRAFFIC_SECONDS = 420  # people are generated for so many seconds; a longer part gets new people
MONITORING_CAUSES = {"drift", "performance"}  # causes of a retraining that must not occur in a steady world

CHANGE = {
    Scenario.SHIFT: ("The world changes", "Incomes rise by 30%; debts and new inquiries decide more than payments."),
    Scenario.NONE: ("The world stays as it is", "Nothing may be retrained for drift, nothing promoted for it."),
    Scenario.BROKEN: (
        "A source breaks",
        "Incomes come in thousands, salaries not at all; people and labels are as ever. The platform must alert people"
        " and must not learn from these rows.",
    ),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """An event in the summary.

    after: seconds since the world changed, negative before it.
    what: the line of text.
    """

    after: float
    what: str


@dataclass(frozen=True, slots=True)
class Quality:
    """Two versions compared on the same rows, newer than the training rows of both, with 95% intervals.

    metric: the name of the metric.
    rows: the number of rows.
    before: the metric of the champion.
    after: the metric of the candidate.
    better_by: the paired difference, with one-sided bounds at the confidence of the gate.
    """

    metric: str
    rows: int
    before: Estimate
    after: Estimate
    better_by: Estimate


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a demonstration.

    scenario: the name of the scenario.
    problems: the deviations from the result that the scenario promises.
    timeline: the important events, the oldest first.
    quality: the comparison of champion and candidate. None if no training compared them.
    seconds: the duration.
    """

    scenario: str
    problems: list[str]
    timeline: list[Moment]
    quality: Quality | None
    seconds: float


def play(
    settings: Settings, spec: ModelSpec, *, scenario: Scenario, console: Console, alerts: list[dict[str, Any]]
) -> Outcome:
    """Send traffic of the unchanged world, change the world by `scenario`, and follow the platform's reaction.

    The stack of `settings` must run and serve a version of `spec`, whose durations are seconds. `scenario` is a key of
    `CHANGE`. `alerts`: the list of the alerts that the stack's webhook receives. The world changes at the border of a
    window, after `CALM` windows were judged.

    Raises: StackError, Unreachable, AccessDenied.
    """
    begun, watch = time.monotonic(), Watch(settings, spec, console, utc_now(), alerts)
    champion, workers = _serving(settings, spec)
    window = spec.monitoring.window
    _announce(
        console,
        f"1. The world is as it was when version {champion} learned",
        f"{RATE:.0f} people a second ask, each once; their labels follow {LATE.seconds} s later. {spec.name}_monitoring"
        f" looks at windows of {window.seconds} s.",
    )
    with _traffic(settings, spec, Scenario.NONE) as sender:
        error = watch.until(lambda: len(watch.rows("drift")) >= CALM, lambda: len(watch.rows("drift")), beside=sender)
        change = grid(utc_now(), window) + window
        watch.until(lambda: utc_now() >= change, utc_now, beside=sender)
    heading, text = CHANGE[scenario]
    _announce(console, f"2. {heading}", text)
    airflow = Airflow(settings)
    with _traffic(settings, spec, scenario) as sender:
        error += watch.until(
            lambda: _is_over(watch, champion, change, scenario),
            lambda: _progress(watch, airflow, change),
            beside=sender,
        )
    problems = [error] if error else []
    problems += (
        _missing_steps(watch, champion, change) if scenario is Scenario.SHIFT else _unwanted_events(watch, change)
    )
    if scenario is Scenario.BROKEN:
        problems += _missing_alerts(watch, change)
    if _serving(settings, spec)[1] != workers:
        problems.append("a worker of the service was replaced")
    return Outcome(
        scenario=scenario.value,
        problems=problems,
        timeline=_timeline(watch, champion, change, heading),
        quality=_quality(watch, change),
        seconds=time.monotonic() - begun,
    )


def _announce(console: Console, heading: str, text: str) -> None:
    console.print(f"\n[bold]{escape(heading)}[/bold]\n{escape(text)}", soft_wrap=True)


@contextmanager
def _traffic(settings: Settings, spec: ModelSpec, scenario: Scenario) -> Iterator["Future[None]"]:
    """Send requests until the end of the block."""
    stop, count = Event(), int(RATE * TRAFFIC_SECONDS)

    def send() -> None:
        while not stop.is_set():
            simulate(settings, spec, scenario=scenario, requests=count, rate=RATE, labels_after=LATE, stop=stop)

    with ThreadPoolExecutor(1) as executor:
        sender = executor.submit(send)
        try:
            yield sender
        finally:
            stop.set()
    sender.result()


def _serving(settings: Settings, spec: ModelSpec) -> tuple[int, set[Any]]:
    """The version of the champion, and the ids of the worker processes."""
    with session(settings, "reader") as connection:
        champion = deployments.champion(connection, spec.name)
        workers = deployments.instances(connection, spec.name)
    if champion is None:
        raise StackError(f"no version of {spec.name} serves")
    return int(champion["version"]), {worker["instance_id"] for worker in workers}


def _is_over(watch: Watch, champion: int, change: datetime, scenario: Scenario) -> bool:
    if scenario is Scenario.SHIFT:
        live = watch.rows("deployment", after=change, action="live")
        rejected = watch.rows("verdict", after=change, verdict="reject")
        return bool(rejected or (live and _first_answer(watch, champion, change)))
    return watch.windows(after=change) >= JUDGED or bool(_retrained(watch))


def _progress(watch: Watch, airflow: Airflow, change: datetime) -> object:
    """A sign of progress. Windows are judged for ever, so only the first ones after the change count."""
    steps = sum(len(watch.rows(kind, after=change)) for kind in ("training", "trained", "verdict", "deployment"))
    windows = min(watch.windows(after=change), JUDGED)
    dags = (f"{watch.spec.name}_{kind}" for kind in ("training", "deployment"))
    return windows, steps, len(_retrained(watch)), activity(airflow, *dags)


def _retrained(watch: Watch) -> list[RowMapping]:
    """The decisions to retrain because of drift or performance."""
    return [row for row in watch.rows("retraining", action="retrain") if row["cause"] in MONITORING_CAUSES]


def _first_answer(watch: Watch, champion: int, change: datetime) -> datetime | None:
    """The time of the first answer by a later version than `champion`. None before that."""
    versions = [row["version"] for row in watch.rows("deployment", after=change, action="deploy")]
    if not versions or versions[-1] == champion:
        return None
    with session(watch.settings, "reader") as connection:
        return timeline.first_answer(connection, watch.spec.name, version=versions[-1], since=change)


def _missing_steps(watch: Watch, champion: int, change: datetime) -> list[str]:
    """The steps of a complete loop that are missing."""
    decisions = _retrained(watch)
    problems = [f"retrained before the change: {row['reason']}" for row in decisions if row["decided_at"] < change]
    if not [row for row in decisions if row["decided_at"] >= change]:
        problems.append("no retraining was decided for what monitoring found")
    problems += [words("verdict", row) for row in watch.rows("verdict", after=change, verdict="reject")]
    if _first_answer(watch, champion, change) is None:
        problems.append(f"no later version than {champion} has answered")
    return problems


def _unwanted_events(watch: Watch, change: datetime) -> list[str]:
    """The events that must not occur if the world needs no retraining, and missing windows."""
    problems = [f"decided to retrain: {row['reason']}" for row in _retrained(watch)]
    if (window_count := watch.windows(after=change)) < JUDGED:
        problems.append(f"{window_count} windows were judged, {JUDGED} are needed")
    return problems


def _missing_alerts(watch: Watch, change: datetime) -> list[str]:
    decisions = watch.rows("retraining", after=change, cause="broken_source")
    return [] if watch.alerts and any(row["alerted_at"] for row in decisions) else ["nobody was alerted"]


def _timeline(watch: Watch, champion: int, change: datetime, heading: str) -> list[Moment]:
    """The important events. Windows without drift, performance, and decisions without an action are left out."""
    moments = [(change, heading.lower())]
    for at, kind, row in watch.events:
        is_quiet = {"drift": not row.get("drifted"), "performance": True, "retraining": not _matters(row)}
        if not is_quiet.get(kind, False):
            moments.append((at, words(kind, row)))
    if answered_at := _first_answer(watch, champion, change):
        moments.append((answered_at, "the new version answers its first request"))
    return [Moment((at - change).total_seconds(), text) for at, text in sorted(moments, key=lambda moment: moment[0])]


def _matters(decision: RowMapping) -> bool:
    return decision.get("action") == "retrain" or bool(decision.get("alert"))


def _quality(watch: Watch, change: datetime) -> Quality | None:
    """The training's comparison of both versions. None if no training compared them."""
    verdicts = [row for row in watch.rows("verdict", after=change) if row["champion_version"]]
    if not verdicts:
        return None
    evaluation = load_evaluation(load_run(watch.settings, verdicts[-1]["run_id"]), settings=watch.settings)
    if evaluation.better_by is None:
        return None
    metric = watch.spec.gates.champion.metric
    before, after = evaluation.champion[metric], evaluation.candidate[metric]
    return Quality(metric, evaluation.compared_rows, before, after, evaluation.better_by)
