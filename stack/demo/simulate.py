"""Simulate: people of an example world ask the running service, and what became of them reaches the store later.

Predictions are made now, so everything about them is dated now: a person's features and label have the time that is in
the prediction_id. Features enter the store within seconds, labels when they are due (`stack.demo.late_labels`).
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
from stack.demo.traffic import Answer, Traffic
from stack.example_data import scenarios
from stack.example_data.scenario_names import Scenario
from stack.programs.health import answers
from stack.programs.program_list import serving_urls
from utils.clock import utc_now
from utils.errors import Unreachable
from utils.settings import Settings

FLUSH, LOOK = 5.0, 0.5  # seconds between two loads; between two looks at the traffic
LONGEST_WAIT = timedelta(minutes=5)  # for labels, after the last request


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a simulation. `changed`: answered requests that the scenario applied to; `seconds`: of the traffic.

    Rows are those new in the store; labels kept by an earlier simulation count too. `labels_waiting` are not due before
    `labels_due` (UTC). `refusal`: what the service said to the first request it refused.
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
    """Send `requests` at `rate` a second and load what is known of those people; ends when all is answered and loaded.

    `seed` says who asks; by default it is somebody new each time. The scenario applies from `since` (UTC) on, by
    default from the first request; before that the world is as ever. `labels_after`: how late labels are, by default
    the model's maturity; those later than five minutes are left to the next simulation. Once `stop` is set, nobody asks
    any more and no label is waited for. `url`: of the service, by default the one on this machine.

    Raises: NotFound where the model has no scenarios; Unreachable, AccessDenied, StackError.
    """
    seed = secrets.randbits(32) if seed is None else seed
    url = url or serving_urls(settings)[spec.name]
    if requests and not answers(f"{url}/readyz"):
        raise Unreachable(service=f"the prediction service of {spec.name}", address=url, reason="not ready")
    people = People(spec, scenario=scenario, since=since, count=requests, seed=seed)
    delay = spec.label.maturity if labels_after is None else labels_after
    late = LateLabels(settings, spec, delay=delay, source=f"simulation {scenario}, seed {seed}", name=f"{seed:x}")
    key = settings.api_key.get_secret_value()
    with (
        _progress(console) as shown,
        Traffic(url, key=key, body=people.body, count=requests, rate=rate) as traffic,
    ):
        try:
            seconds = _follow(traffic, people, late, shown, stop or Event())
            longest = timedelta(0) if stop and stop.is_set() else LONGEST_WAIT
            late.wait(
                longest, tell=lambda left: shown.update(shown.task_ids[0], note=f"labels due in {left.seconds} s")
            )
        finally:
            late.close()
    return _summary(spec, scenario, traffic, people, late, seed=seed, seconds=seconds)


def _follow(traffic: Traffic, people: "People", late: LateLabels, shown: Progress, stop: Event) -> float:
    """Load what the answers bring until the last one is there, or `stop` is set; returns how many seconds that took."""
    begun, loaded, over = time.monotonic(), 0, False
    task = shown.add_task("requests", total=traffic.count, note="")
    while not over:
        flush_at = time.monotonic() + FLUSH
        while not (over := traffic.is_over(within=LOOK) or stop.is_set()) and time.monotonic() < flush_at:
            shown.update(task, completed=traffic.done, note=f"{traffic.done / (time.monotonic() - begun):.0f} a second")
        seconds = time.monotonic() - begun
        shown.update(task, completed=traffic.done)
        fresh = traffic.answers[loaded:]
        loaded += len(fresh)
        if fresh:
            late.load(people.features(fresh), people.labels(fresh))
        else:
            late.load()
    return seconds


def _summary(
    spec: ModelSpec,
    scenario: Scenario,
    traffic: Traffic,
    people: "People",
    late: LateLabels,
    *,
    seed: int,
    seconds: float,
) -> Summary:
    """What came of the simulation, once all is answered and loaded."""
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
        feature_rows=late.feature_rows,
        label_rows=late.label_rows,
        labels_waiting=len(late.waiting),
        labels_due=late.due,
        refusal=traffic.refusals[0] if traffic.refusals else None,
    )


class People:
    """Those who ask, numbered from 0. Each is at hand twice: in the world as ever, and in the changed one."""

    def __init__(self, spec: ModelSpec, *, scenario: Scenario, since: datetime | None, count: int, seed: int) -> None:
        now = utc_now()
        as_ever, changed = (
            scenarios.traffic(spec.name, scenario=each, end=now, rows=count, seed=seed)
            for each in (Scenario.NONE, scenario)
        )
        self._spec, self._seed, self._count = spec, seed, count
        self._features = pd.concat([as_ever.features, changed.features], ignore_index=True)
        self._labels = pd.concat([as_ever.labels, changed.labels], ignore_index=True)
        self._rows = rows_of(self._features, spec=spec)
        self._changes, self._since = scenario is not Scenario.NONE, since
        self.changed: set[int] = set()

    def body(self, number: int) -> dict[str, Any]:
        """The request of a person, who from now on belongs to the world that there is at this moment."""
        if self._changes and (self._since is None or utc_now() >= self._since):
            self.changed.add(number)
        row = dict(zip(self._spec.features.columns, self._rows[self._place(number)], strict=True))
        return {"data": {self._spec.entity: self._name(number), **row}}

    def features(self, answered: Sequence[Answer]) -> pd.DataFrame:
        """Rows for the store, in the order of `answered`."""
        found = self._features.iloc[[self._place(answer.number) for answer in answered]].reset_index(drop=True)
        return pd.concat([self._keys(answered), found], axis=1)

    def labels(self, answered: Sequence[Answer]) -> pd.DataFrame:
        """Rows for the store, in the order of `answered`."""
        found = self._labels.iloc[[self._place(answer.number) for answer in answered]]
        return self._keys(answered).assign(**{self._spec.label.column: found.to_numpy()})

    def _keys(self, answered: Sequence[Answer]) -> pd.DataFrame:
        times = pd.Series([answer.at for answer in answered], dtype="datetime64[us]")
        keys = {"entity_id": [self._name(answer.number) for answer in answered], "available_at": times}
        return pd.DataFrame({**keys, "event_time": times} if self._spec.timed else keys)

    def _place(self, number: int) -> int:
        return number + self._count * (number in self.changed)

    def _name(self, number: int) -> str:
        return f"sim-{self._seed:x}-{number}"


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    quiet = console is None or not console.is_terminal
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=quiet)
