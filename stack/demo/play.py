"""The demonstration: send requests of simulated people, change the people, and print how the platform reacts.

All printed events are rows that the platform wrote. This module makes no decision and trains no model.
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
from stack.demo.watch import Watch, describe
from stack.example_data.scenario_names import Scenario
from stack.programs.airflow_client import Airflow
from stack.programs.airflow_runs import activity
from utils.clock import utc_now
from utils.errors import StackError
from utils.settings import Settings

RATE = 32.0  # requests per second, so that a window of 20 s has the rows that monitoring needs
LABEL_DELAY = timedelta(seconds=3)  # from a prediction to its label
WINDOWS_BEFORE_CHANGE = 2  # windows that are judged before the change
WINDOWS_AFTER_CHANGE = 3  # windows that are judged after the change; an alarm needs no more
TRAFFIC_SECONDS = 420  # seconds of requests per simulation; longer traffic continues with another simulation
MONITORING_CAUSES = {"drift", "performance"}  # causes of a retraining that must not occur without a change

CHANGE_TEXTS = {
    Scenario.SHIFT: ("The data changes", "Incomes rise by 30%. Debts and inquiries count more than payments."),
    Scenario.NONE: ("The data stays the same", "Drift must start no training, and no version may be promoted for it."),
    Scenario.BROKEN: (
        "A source breaks",
        "Incomes come in thousands, and salaries are missing. People and labels stay the same. The platform must send"
        " an alert and must not learn from these rows.",
    ),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """An event in the summary.

    after: seconds from the change to the event. Negative for events before the change.
    what: the description of the event.
    """

    after: float
    what: str


@dataclass(frozen=True, slots=True)
class Quality:
    """Two versions compared on the same rows, newer than the training rows of both, with 95% intervals.

    metric: the name of the metric.
    rows: the number of compared rows.
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
    problems: the differences from the expected reaction. Empty if the platform reacted as expected.
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
    """Send requests of unchanged people, change the people by `scenario`, and follow the platform's reaction.

    The stack of `settings` must run and serve a version of `spec`, whose durations are seconds. `scenario` is a key of
    `CHANGE_TEXTS`. `alerts`: the list to which the stack's webhook adds the alerts that it receives. The change is at
    the start of a window, after `WINDOWS_BEFORE_CHANGE` windows were judged.

    Raises: StackError, Unreachable, AccessDenied.
    """
    start, watch = time.monotonic(), Watch(settings, spec, console, utc_now(), alerts)
    champion, workers = _read_serving(settings, spec)
    window = spec.monitoring.window
    _announce(
        console,
        f"1. The data is like that on which version {champion} was trained",
        f"{RATE:.0f} people per second send one request each. Their labels follow {LABEL_DELAY.seconds} s later."
        f" {spec.name}_monitoring looks at windows of {window.seconds} s.",
    )
    with _send_traffic(settings, spec, Scenario.NONE) as sender:
        error = watch.until(
            lambda: len(watch.rows("drift")) >= WINDOWS_BEFORE_CHANGE, lambda: len(watch.rows("drift")), traffic=sender
        )
        changed_at = grid(utc_now(), window) + window
        watch.until(lambda: utc_now() >= changed_at, utc_now, traffic=sender)
    heading, text = CHANGE_TEXTS[scenario]
    _announce(console, f"2. {heading}", text)
    airflow = Airflow(settings)
    with _send_traffic(settings, spec, scenario) as sender:
        error += watch.until(
            lambda: _is_over(watch, champion, changed_at, scenario),
            lambda: _measure_progress(watch, airflow, changed_at),
            traffic=sender,
        )
    problems = [error] if error else []
    problems += _find_problems(watch, champion, changed_at, scenario)
    if _read_serving(settings, spec)[1] != workers:
        problems.append("a worker of the service was replaced")
    return Outcome(
        scenario=scenario.value,
        problems=problems,
        timeline=_build_timeline(watch, champion, changed_at, heading),
        quality=_read_quality(watch, changed_at),
        seconds=time.monotonic() - start,
    )


def _find_problems(watch: Watch, champion: int, changed_at: datetime, scenario: Scenario) -> list[str]:
    if scenario is Scenario.SHIFT:
        return _find_missing_steps(watch, champion, changed_at)
    missing_alerts = _find_missing_alerts(watch, changed_at) if scenario is Scenario.BROKEN else []
    return [*_find_unwanted_events(watch, changed_at), *missing_alerts]


def _announce(console: Console, heading: str, text: str) -> None:
    console.print(f"\n[bold]{escape(heading)}[/bold]\n{escape(text)}", soft_wrap=True)


@contextmanager
def _send_traffic(settings: Settings, spec: ModelSpec, scenario: Scenario) -> Iterator["Future[None]"]:
    """Send requests during the block. Yield the future of the sender."""
    stop, count = Event(), int(RATE * TRAFFIC_SECONDS)

    def send() -> None:
        while not stop.is_set():
            simulate(settings, spec, scenario=scenario, requests=count, rate=RATE, labels_after=LABEL_DELAY, stop=stop)

    with ThreadPoolExecutor(1) as executor:
        sender = executor.submit(send)
        try:
            yield sender
        finally:
            stop.set()
    sender.result()


def _read_serving(settings: Settings, spec: ModelSpec) -> tuple[int, set[Any]]:
    """Return the version of the champion and the ids of the service's worker processes."""
    with session(settings, "reader") as connection:
        champion = deployments.champion(connection, spec.name)
        workers = deployments.instances(connection, spec.name)
    if champion is None:
        raise StackError(f"no version of {spec.name} serves")
    return int(champion["version"]), {worker["instance_id"] for worker in workers}


def _is_over(watch: Watch, champion: int, changed_at: datetime, scenario: Scenario) -> bool:
    if scenario is Scenario.SHIFT:
        live = watch.rows("deployment", after=changed_at, action="live")
        rejected = watch.rows("verdict", after=changed_at, verdict="reject")
        return bool(rejected or (live and _find_first_answer(watch, champion, changed_at)))
    return watch.windows(after=changed_at) >= WINDOWS_AFTER_CHANGE or bool(_find_retrainings(watch))


def _measure_progress(watch: Watch, airflow: Airflow, changed_at: datetime) -> object:
    """Return a value that changes with progress. Only the first windows after the change count."""
    steps = sum(len(watch.rows(kind, after=changed_at)) for kind in ("training", "trained", "verdict", "deployment"))
    windows = min(watch.windows(after=changed_at), WINDOWS_AFTER_CHANGE)
    dags = (f"{watch.spec.name}_{kind}" for kind in ("training", "deployment"))
    return windows, steps, len(_find_retrainings(watch)), activity(airflow, *dags)


def _find_retrainings(watch: Watch) -> list[RowMapping]:
    """Return the decisions to retrain because of drift or performance."""
    return [row for row in watch.rows("retraining", action="retrain") if row["cause"] in MONITORING_CAUSES]


def _find_first_answer(watch: Watch, champion: int, changed_at: datetime) -> datetime | None:
    """Return the time of the first answer by a later version than `champion`. None if there is no such answer yet."""
    versions = [row["version"] for row in watch.rows("deployment", after=changed_at, action="deploy")]
    if not versions or versions[-1] == champion:
        return None
    with session(watch.settings, "reader") as connection:
        return timeline.first_answer(connection, watch.spec.name, version=versions[-1], since=changed_at)


def _find_missing_steps(watch: Watch, champion: int, changed_at: datetime) -> list[str]:
    """Return the missing steps of the loop from the change to an answer of a new version, one line each."""
    decisions = _find_retrainings(watch)
    problems = [f"retrained before the change: {row['reason']}" for row in decisions if row["decided_at"] < changed_at]
    if not [row for row in decisions if row["decided_at"] >= changed_at]:
        problems.append("no retraining was decided for what monitoring found")
    problems += [describe("verdict", row) for row in watch.rows("verdict", after=changed_at, verdict="reject")]
    if _find_first_answer(watch, champion, changed_at) is None:
        problems.append(f"no later version than {champion} has answered")
    return problems


def _find_unwanted_events(watch: Watch, changed_at: datetime) -> list[str]:
    """Return the retrainings, which must not occur in this scenario, and a line if too few windows were judged."""
    problems = [f"decided to retrain: {row['reason']}" for row in _find_retrainings(watch)]
    if (window_count := watch.windows(after=changed_at)) < WINDOWS_AFTER_CHANGE:
        problems.append(f"{window_count} windows were judged, {WINDOWS_AFTER_CHANGE} are needed")
    return problems


def _find_missing_alerts(watch: Watch, changed_at: datetime) -> list[str]:
    decisions = watch.rows("retraining", after=changed_at, cause="broken_source")
    return [] if watch.alerts and any(row["alerted_at"] for row in decisions) else ["nobody was alerted"]


def _build_timeline(watch: Watch, champion: int, changed_at: datetime, heading: str) -> list[Moment]:
    """Return the important events: all except windows without drift, performance, and decisions without an action."""
    moments = [(changed_at, heading.lower())]
    for at, kind, row in watch.events:
        is_quiet = {"drift": not row.get("drifted"), "performance": True, "retraining": not _has_action(row)}
        if not is_quiet.get(kind, False):
            moments.append((at, describe(kind, row)))
    if answered_at := _find_first_answer(watch, champion, changed_at):
        moments.append((answered_at, "the new version answers its first request"))
    return [
        Moment((at - changed_at).total_seconds(), text) for at, text in sorted(moments, key=lambda moment: moment[0])
    ]


def _has_action(decision: RowMapping) -> bool:
    return decision.get("action") == "retrain" or bool(decision.get("alert"))


def _read_quality(watch: Watch, changed_at: datetime) -> Quality | None:
    """Return the training's comparison of champion and candidate. None if no training compared them."""
    verdicts = [row for row in watch.rows("verdict", after=changed_at) if row["champion_version"]]
    if not verdicts:
        return None
    evaluation = load_evaluation(load_run(watch.settings, verdicts[-1]["run_id"]), settings=watch.settings)
    if evaluation.better_by is None:
        return None
    metric = watch.spec.gates.champion.metric
    before, after = evaluation.champion[metric], evaluation.candidate[metric]
    return Quality(metric, evaluation.compared_rows, before, after, evaluation.better_by)
