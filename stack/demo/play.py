"""The demonstration: traffic, a world that changes, and what the platform makes of it, told while it happens.

Everything that is told was read from the rows that the platform itself wrote; nothing here decides or trains.
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

RATE = 32.0  # requests a second: a window of 20 s then has the rows that monitoring asks for
LATE = timedelta(seconds=3)  # from a prediction to its label
CALM = 2  # windows of the unchanged world that are judged before it changes
JUDGED = 3  # windows after the change, as many as an alarm looks at; what has not been decided then will not be
ASKING = 420  # seconds of people who are made beforehand; where a part takes longer, others follow
FOUND = {"drift", "performance"}  # causes of a retraining that a steady world must not give

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
    """`after`: seconds since the world changed, negative before it."""

    after: float
    what: str


@dataclass(frozen=True, slots=True)
class Quality:
    """Two versions on the same rows, newer than what either learned from, with 95% intervals.

    `better_by`: the paired difference, its bounds one-sided at the confidence that the gate asks.
    """

    metric: str
    rows: int
    before: Estimate
    after: Estimate
    better_by: Estimate


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a demonstration showed. `problems`: what differs from what the scenario promises, if anything does."""

    scenario: str
    problems: list[str]
    timeline: list[Moment]
    quality: Quality | None
    seconds: float


def play(
    settings: Settings, spec: ModelSpec, *, scenario: Scenario, console: Console, alerts: list[dict[str, Any]]
) -> Outcome:
    """Send traffic of the unchanged world, change it as `scenario` says, and follow what the platform does about it.

    The stack of `settings` runs and serves a version of `spec`, whose durations are seconds. `scenario` is a key of
    `CHANGE`. `alerts` is what the stack's webhook has been sent. The world changes at the border of a window, once
    `CALM` of them were judged.

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
    with _traffic(settings, spec, Scenario.NONE) as asked:
        stuck = watch.until(lambda: len(watch.rows("drift")) >= CALM, lambda: len(watch.rows("drift")), beside=asked)
        change = grid(utc_now(), window) + window
        watch.until(lambda: utc_now() >= change, utc_now, beside=asked)
    heading, text = CHANGE[scenario]
    _announce(console, f"2. {heading}", text)
    airflow = Airflow(settings)
    with _traffic(settings, spec, scenario) as asked:
        stuck += watch.until(
            lambda: _is_over(watch, champion, change, scenario), lambda: _progress(watch, airflow, change), beside=asked
        )
    problems = [stuck] if stuck else []
    problems += _closed(watch, champion, change) if scenario is Scenario.SHIFT else _held(watch, change)
    if scenario is Scenario.BROKEN:
        problems += _alerted(watch, change)
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
    """People ask up to the end of the block."""
    stop, some = Event(), int(RATE * ASKING)

    def ask() -> None:
        while not stop.is_set():
            simulate(settings, spec, scenario=scenario, requests=some, rate=RATE, labels_after=LATE, stop=stop)

    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(ask)
        try:
            yield asked
        finally:
            stop.set()
    asked.result()


def _serving(settings: Settings, spec: ModelSpec) -> tuple[int, set[Any]]:
    """The version that serves, and the worker processes that do."""
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
    """A sign that the end comes nearer. Windows are judged for ever, so only the first ones after the change count."""
    steps = sum(len(watch.rows(kind, after=change)) for kind in ("training", "trained", "verdict", "deployment"))
    windows = min(watch.windows(after=change), JUDGED)
    dags = (f"{watch.spec.name}_{kind}" for kind in ("training", "deployment"))
    return windows, steps, len(_retrained(watch)), activity(airflow, *dags)


def _retrained(watch: Watch) -> list[RowMapping]:
    """Decisions to retrain for what monitoring found."""
    return [row for row in watch.rows("retraining", action="retrain") if row["cause"] in FOUND]


def _first_answer(watch: Watch, champion: int, change: datetime) -> datetime | None:
    """When a later version than `champion` first answered."""
    deployed = [row["version"] for row in watch.rows("deployment", after=change, action="deploy")]
    if not deployed or deployed[-1] == champion:
        return None
    with session(watch.settings, "reader") as connection:
        return timeline.first_answer(connection, watch.spec.name, version=deployed[-1], since=change)


def _closed(watch: Watch, champion: int, change: datetime) -> list[str]:
    """What is missing for the loop to have closed."""
    decided = _retrained(watch)
    problems = [f"retrained before the change: {row['reason']}" for row in decided if row["decided_at"] < change]
    if not [row for row in decided if row["decided_at"] >= change]:
        problems.append("no retraining was decided for what monitoring found")
    problems += [words("verdict", row) for row in watch.rows("verdict", after=change, verdict="reject")]
    if _first_answer(watch, champion, change) is None:
        problems.append(f"no later version than {champion} has answered")
    return problems


def _held(watch: Watch, change: datetime) -> list[str]:
    """What happened that should not have."""
    problems = [f"decided to retrain: {row['reason']}" for row in _retrained(watch)]
    if (judged := watch.windows(after=change)) < JUDGED:
        problems.append(f"{judged} windows were judged, {JUDGED} are needed")
    return problems


def _alerted(watch: Watch, change: datetime) -> list[str]:
    held = watch.rows("retraining", after=change, cause="broken_source")
    return [] if watch.alerts and any(row["alerted_at"] for row in held) else ["nobody was alerted"]


def _timeline(watch: Watch, champion: int, change: datetime, heading: str) -> list[Moment]:
    """What mattered. Windows like training, and decisions by which nothing happened, are left out."""
    told = [(change, heading.lower())]
    for at, kind, row in watch.seen:
        quiet = {"drift": not row.get("drifted"), "performance": True, "retraining": not _matters(row)}
        if not quiet.get(kind, False):
            told.append((at, words(kind, row)))
    if answered := _first_answer(watch, champion, change):
        told.append((answered, "the new version answers its first request"))
    return [Moment((at - change).total_seconds(), what) for at, what in sorted(told, key=lambda moment: moment[0])]


def _matters(decision: RowMapping) -> bool:
    return decision.get("action") == "retrain" or bool(decision.get("alert"))


def _quality(watch: Watch, change: datetime) -> Quality | None:
    """Both versions as the training compared them, where there was one."""
    verdicts = [row for row in watch.rows("verdict", after=change) if row["champion_version"]]
    if not verdicts:
        return None
    evaluation = load_evaluation(load_run(watch.settings, verdicts[-1]["run_id"]), settings=watch.settings)
    if evaluation.better_by is None:
        return None
    metric = watch.spec.gates.champion.metric
    before, after = evaluation.champion[metric], evaluation.candidate[metric]
    return Quality(metric, evaluation.compared_rows, before, after, evaluation.better_by)
