"""Simulate: request predictions for simulated people, and load their features and labels into the store.

The event time of a person's features and label is the time of the prediction, as it is in the prediction_id. Features
enter the store within seconds, labels as soon as they are due (`stack.demo.late_labels`).
"""

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.artifact.learner import rows_of
from pipelines.spec import ModelSpec
from stack.demo.late_labels import LateLabels
from stack.demo.traffic import Answer, RetryingTraffic
from stack.example_data import scenarios
from stack.example_data.scenario_names import Scenario
from stack.programs.health import answers
from stack.programs.program_list import serving_urls
from utils.clock import utc_now
from utils.errors import Unreachable
from utils.settings import Settings

LOAD_SECONDS, CHECK_SECONDS = 5.0, 0.5  # seconds between two loads into the store; between two checks of the traffic
LONGEST_WAIT = timedelta(minutes=5)  # how long labels are waited for after the last request


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a simulation.

    model: the name of the model.
    scenario: the name of the scenario.
    seed: the seed of the people.
    requests: the number of requests to send.
    answered: the number of answered requests.
    refused: the number of requests that the service rejected.
    changed: the number of answered requests for which the scenario had begun.
    seconds: the duration of the traffic.
    versions: version → number of its answers.
    feature_rows: the number of feature rows that were new in the store.
    label_rows: the number of labels that were new in the store, including labels kept by an earlier simulation.
    labels_waiting: the number of labels that are not due yet.
    labels_due: the time when the last waiting label is due, UTC. None if no label waits.
    refusal: the error of the first rejected request. None if no request was rejected.
    """

    model: str
    scenario: str
    seed: int
    requests: int
    answered: int
    refused: int
    changed: int
    seconds: float
    versions: dict[int, int]
    feature_rows: int
    label_rows: int
    labels_waiting: int
    labels_due: datetime | None
    refusal: str | None


def simulate(
    settings: Settings,
    spec: ModelSpec,
    *,
    scenario: Scenario,
    requests: int,
    rate: float,
    seed: int | None = None,
    since: datetime | None = None,
    labels_after: timedelta | None = None,
    stop: Event | None = None,
    url: str | None = None,
    console: Console | None = None,
) -> Summary:
    """Send `requests` at `rate` per second, and load the people's features and labels. Return after all are loaded.

    `seed`: chooses the people, by default new people each time. `since`: the time from which the scenario applies, UTC,
    by default the first request. `labels_after`: the delay of labels, by default the model's maturity. Labels that are
    due more than five minutes after the last request are left to the next simulation. `stop`: after it is set, no more
    requests are sent and no labels are waited for. `url`: the address of the service, by default on this machine.

    Raises: NotFound if the model has no scenarios; Unreachable, AccessDenied, StackError.
    """
    seed = secrets.randbits(32) if seed is None else seed
    url = url or serving_urls(settings)[spec.name]
    if requests and not answers(f"{url}/readyz"):
        raise Unreachable(service=f"the prediction service of {spec.name}", address=url, reason="not ready")
    people = SimulatedPeople(spec, scenario=scenario, since=since, count=requests, seed=seed)
    delay = spec.label.maturity if labels_after is None else labels_after
    late_labels = LateLabels(
        settings, spec, delay=delay, source=f"simulation {scenario}, seed {seed}", name=f"{seed:x}"
    )
    key = settings.api_key.get_secret_value()
    with (
        _progress_bar(console) as bar,
        RetryingTraffic(url, key=key, body=people.body, count=requests, rate=rate) as traffic,
    ):
        try:
            seconds = _load_answers(traffic, people, late_labels, bar, stop or Event())
            longest = timedelta(0) if stop and stop.is_set() else LONGEST_WAIT
            late_labels.wait(
                longest, report=lambda rest: bar.update(bar.task_ids[0], note=f"labels due in {rest.seconds} s")
            )
        finally:
            late_labels.close()
    return _summarize(spec, scenario, traffic, people, late_labels, seed=seed, seconds=seconds)


def _load_answers(
    traffic: RetryingTraffic, people: "SimulatedPeople", late_labels: LateLabels, bar: Progress, stop: Event
) -> float:
    """Load the rows of each answered request until the traffic is over or `stop` is set. Return its duration (s)."""
    start, loaded_count, is_over = time.monotonic(), 0, False
    task = bar.add_task("requests", total=traffic.count, note="")
    while not is_over:
        load_at = time.monotonic() + LOAD_SECONDS
        while not (is_over := traffic.is_over(within=CHECK_SECONDS) or stop.is_set()) and time.monotonic() < load_at:
            bar.update(task, completed=traffic.done, note=f"{traffic.done / (time.monotonic() - start):.0f} per second")
        seconds = time.monotonic() - start
        bar.update(task, completed=traffic.done)
        new_answers = traffic.answers[loaded_count:]
        loaded_count += len(new_answers)
        if new_answers:
            late_labels.load(people.features(new_answers), people.labels(new_answers))
        else:
            late_labels.load()
    return seconds


def _summarize(
    spec: ModelSpec,
    scenario: Scenario,
    traffic: RetryingTraffic,
    people: "SimulatedPeople",
    late_labels: LateLabels,
    *,
    seed: int,
    seconds: float,
) -> Summary:
    """Summarize the simulation after all rows are loaded."""
    numbers = {answer.number for answer in traffic.answers}
    return Summary(
        model=spec.name,
        scenario=scenario.value,
        seed=seed,
        requests=traffic.count,
        answered=len(numbers),
        refused=len(traffic.refusals),
        changed=len(numbers & people.changed),
        seconds=seconds,
        versions=dict(sorted(Counter(answer.version for answer in traffic.answers).items())),
        feature_rows=late_labels.feature_rows,
        label_rows=late_labels.label_rows,
        labels_waiting=len(late_labels.waiting),
        labels_due=late_labels.last_due,
        refusal=traffic.refusals[0] if traffic.refusals else None,
    )


class SimulatedPeople:
    """The people of the requests, numbered from 0. Each person has an unchanged row and a row under the scenario.

    changed: the numbers of the people whose request was built after the scenario began.
    """

    def __init__(self, spec: ModelSpec, *, scenario: Scenario, since: datetime | None, count: int, seed: int) -> None:
        now = utc_now()
        unchanged, changed = (
            scenarios.draw_people(spec.name, scenario=name, end=now, rows=count, seed=seed)
            for name in (Scenario.NONE, scenario)
        )
        self._spec, self._seed, self._count = spec, seed, count
        self._features = pd.concat([unchanged.features, changed.features], ignore_index=True)
        self._labels = pd.concat([unchanged.labels, changed.labels], ignore_index=True)
        self._rows = rows_of(self._features, spec=spec)
        self._changes, self._since = scenario is not Scenario.NONE, since
        self.changed: set[int] = set()

    def body(self, number: int) -> dict[str, Any]:
        """Build the request of a person. From now on the person has the row that the scenario gives at this moment."""
        if self._changes and (self._since is None or utc_now() >= self._since):
            self.changed.add(number)
        row = dict(zip(self._spec.features.columns, self._rows[self._row_index(number)], strict=True))
        return {"data": {self._spec.entity: self._entity_id(number), **row}}

    def features(self, answered: Sequence[Answer]) -> pd.DataFrame:
        """Feature rows for the store, in the order of `answered`."""
        rows = self._features.iloc[[self._row_index(answer.number) for answer in answered]].reset_index(drop=True)
        return pd.concat([self._key_columns(answered), rows], axis=1)

    def labels(self, answered: Sequence[Answer]) -> pd.DataFrame:
        """Labels for the store, in the order of `answered`."""
        rows = self._labels.iloc[[self._row_index(answer.number) for answer in answered]]
        return self._key_columns(answered).assign(**{self._spec.label.column: rows.to_numpy()})

    def _key_columns(self, answered: Sequence[Answer]) -> pd.DataFrame:
        times = pd.Series([answer.at for answer in answered], dtype="datetime64[us]")
        keys = {"entity_id": [self._entity_id(answer.number) for answer in answered], "available_at": times}
        return pd.DataFrame({**keys, "event_time": times} if self._spec.timed else keys)

    def _row_index(self, number: int) -> int:
        return number + self._count * (number in self.changed)

    def _entity_id(self, number: int) -> str:
        return f"sim-{self._seed:x}-{number}"


def _progress_bar(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    quiet = console is None or not console.is_terminal
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=quiet)
