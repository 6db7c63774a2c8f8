"""Replay: what would have served, and how well, had the pipelines run at each step of a time that has passed.

A step is a training as Airflow runs it, with `window_end` moved and nothing else, then promotion and roll-out where the
verdict says so. The version that then served is scored on the labels of the time until the next step. A replay has a
name of its own in every history and in MLflow: nothing that serves sees it.
"""

import calendar
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from uuid import uuid4

import numpy as np
import pandas as pd

from db.history import deployments
from db.session import session
from db.store.loads import latest_commit_seq
from db.store.point_in_time import training_frame
from pipelines import registry
from pipelines.artifact.bundle import Bundle
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.deployment import promote, rollout
from pipelines.measures.metrics import JudgedRows, judge, value
from pipelines.runs import training_runs
from pipelines.spec import ModelSpec
from pipelines.training import training_steps
from utils.clock import utc_now
from utils.duration import duration
from utils.errors import DataRefused, IntegrityError
from utils.settings import Settings

Progress = Callable[[str], None]  # told what is being done


@dataclass(frozen=True, slots=True)
class Step:
    """One training and the time that its outcome served: the labels with window_end < event_time <= until.

    `version` served them, None where none had been promoted yet; `learned_from`: how far back it learned, where that
    was searched. `served` and `left_alone`: the metric of that version and of the first one; None without labels.
    """

    window_end: datetime
    until: datetime
    verdict: str
    reason: str
    version: int | None
    learned_from: str | None
    rows: int
    served: float | None
    left_alone: float | None


@dataclass(frozen=True, slots=True)
class Replay:
    """`served`, `left_alone`: the metric over the labels of all steps together, of what served and of the first
    version left alone. `name`: what the replay is called in the histories and in MLflow."""

    model: str
    name: str
    metric: str
    steps: tuple[Step, ...]
    rows: int
    served: float
    left_alone: float


@dataclass(frozen=True, slots=True)
class _Scored:
    step: Step
    served: JudgedRows | None
    left_alone: JudgedRows | None


def replay(
    settings: Settings,
    *,
    spec: ModelSpec,
    start: datetime,
    end: datetime,
    every: str,
    trials: int | None = None,
    progress: Progress = lambda what: None,
) -> Replay:
    """Train at `start` (UTC) and every `every` (`1mo`, `7d`, …) after it, and score until `end`.

    Nobody is asked for approval. A step whose data is refused fails as it would have then: the champion serves on.

    Raises: DataRefused where the data has no time or no step could promote a version; Unreachable; AccessDenied.
    """
    if not spec.timed:
        raise DataRefused(f"{spec.name}: its data has no time (source.event_time), so there is no past to replay")
    name = f"{spec.name[:31]}-replay-{uuid4().hex[:8]}"
    times = list(moments(start, end, every))
    load = cache(lambda version: registry.load(settings, name, version))
    scored: list[_Scored] = []
    first: int | None = None
    for window_end, until in zip(times, [*times[1:], end], strict=True):
        progress(f"{name}: {window_end:%Y-%m-%d}")
        verdict, reason = _train(settings, spec, name=name, window_end=window_end, trials=trials)
        version = _serving(settings, name)
        first = first or version
        labels = _labels(settings, spec, after=window_end, until=until)
        served, left_alone = (
            judged(load(v), labels, spec=spec) if v and len(labels) else None for v in (version, first)
        )
        found = (None if part is None else value(spec.gates.champion.metric, part) for part in (served, left_alone))
        learned = _learned_from(settings, name, version)
        step = Step(window_end, until, verdict, reason, version, learned, len(labels), *found)
        scored.append(_Scored(step, served, left_alone))
    return _total(scored, spec=spec, name=name)


def moments(start: datetime, end: datetime, every: str) -> Iterator[datetime]:
    """`start` and every `every` after it, before `end`. `2mo` counts calendar months, all else is a duration.

    Raises: DataRefused where `every` is neither, or nothing lies between.
    """
    found = re.fullmatch(r"(\d+)mo", every.strip())
    months = int(found[1]) if found else 0
    try:
        length = timedelta(0) if found else duration(every)
    except ValueError as error:
        raise DataRefused(f"--every: {error}, or months like 1mo") from None
    if start >= end or not (months or length):
        raise DataRefused(f"there is no step of {every} between {start:%Y-%m-%d} and {end:%Y-%m-%d}")
    number, moment = 0, start
    while moment < end:
        yield moment
        number += 1
        moment = _months_after(start, number * months) + number * length


def _months_after(moment: datetime, months: int) -> datetime:
    """The same day `months` later, or that month's last where it has no such day."""
    year, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + year, month + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def _train(
    settings: Settings, spec: ModelSpec, *, name: str, window_end: datetime, trials: int | None
) -> tuple[str, str]:
    """One training with all that follows from its verdict; returns the verdict and its reason."""
    run_id = f"{name}/{window_end:%Y-%m-%dT%H:%M:%S}"
    reason = f"replay of {window_end:%Y-%m-%d %H:%M}"
    training_steps.begin(
        settings, spec, model=name, run_id=run_id, reason=reason, window_end=window_end, trials=trials, now=utc_now()
    )
    try:
        verdict = training_steps.train(settings, run_id)
        if verdict["verdict"] == "promote":
            _put_into_service(settings, name, run_id)
    except (DataRefused, IntegrityError) as error:
        return "failed", str(error)
    return str(verdict["verdict"]), str(verdict["reason"])


def _put_into_service(settings: Settings, name: str, run_id: str) -> None:
    claimed = promote.claim(settings, model=name, run_id=run_id, now=utc_now())
    version = promote.promote(settings, decision_id=claimed["decision"])
    rollout.roll_out(
        settings,
        model=name,
        version=version,
        caused_by=run_id,
        reason=claimed["why"],
        now=utc_now(),
        decision_id=claimed["decision"],
    )


def _serving(settings: Settings, name: str) -> int | None:
    with session(settings, "pipeline") as connection:
        row = deployments.champion(connection, name)
    return int(row["version"]) if row else None


def _learned_from(settings: Settings, name: str, version: int | None) -> str | None:
    """How far back the version learned, where that was searched."""
    if version is None:
        return None
    run = training_runs.load_run(settings, registry.version_tags(settings, name, version)["run_id"])
    return (run.best_params or {}).get("window")


def _labels(settings: Settings, spec: ModelSpec, *, after: datetime, until: datetime) -> pd.DataFrame:
    """The labels of a step as the store knows them now, with the features known at their time."""
    return training_frame(
        settings,
        spec.store,
        start=after,
        until=until,
        window_end=max(utc_now(), until),
        commit_seq=latest_commit_seq(settings, spec.name),
    )


def judged(bundle: Bundle, labels: pd.DataFrame, *, spec: ModelSpec) -> JudgedRows:
    """The predictions of a version for `labels`, a frame as `training_frame` gives, beside the truth."""
    scores = score(bundle.model, pool_from_frame(labels, spec=spec, label=False), spec=spec)
    return judge(labels[spec.label.column].to_numpy(), scores, spec=spec)


def _total(scored: list[_Scored], *, spec: ModelSpec, name: str) -> Replay:
    """Both versions over the same labels: those of the steps that had a version to serve."""
    both = [(part.served, part.left_alone) for part in scored if part.served and part.left_alone]
    if not both:
        reasons = "; ".join(dict.fromkeys(part.step.reason for part in scored))
        raise DataRefused(f"{spec.name}: no version served any label in the replay: {reasons[:500]}")
    metric = spec.gates.champion.metric
    served, left_alone = (joined([pair[side] for pair in both]) for side in (0, 1))
    return Replay(
        model=spec.name,
        name=name,
        metric=metric,
        steps=tuple(part.step for part in scored),
        rows=len(served.truth),
        served=value(metric, served),
        left_alone=value(metric, left_alone),
    )


def joined(parts: list[JudgedRows]) -> JudgedRows:
    """All rows of `parts`, of one model file, as one."""
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return JudgedRows(
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.predicted for part in parts]),
        np.concatenate(probabilities) if probabilities else None,
        parts[0].classes,
    )
