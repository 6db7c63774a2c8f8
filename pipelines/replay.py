"""Replay: run the pipelines over a past period in steps, and measure the versions that would have served.

A step is a training as Airflow runs it, but with a past `window_end`. If the verdict is to promote, the candidate is
promoted and rolled out. The version that serves after the training is scored on the labels up to the next step. A
replay has its own name in the histories and in MLflow, so services never load its versions.
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
from pipelines.measures.metrics import JudgedRows, judge, metric_value
from pipelines.runs import training_runs
from pipelines.spec import ModelSpec
from pipelines.training import training_steps
from pipelines.training.lookback import LOOK_BACK_KEY
from utils.clock import utc_now
from utils.duration import duration
from utils.errors import DataRefused, IntegrityError
from utils.settings import Settings

Progress = Callable[[str], None]  # called with the name and the time of each step


@dataclass(frozen=True, slots=True)
class Step:
    """One training and the period after it: the labels with window_end < event_time <= until.

    window_end, until: the bounds of the period, UTC.
    verdict: the verdict of the training, or `failed` if the training failed.
    reason: the reason of the verdict or of the failure.
    version: the version that serves in the period. None before the first promotion.
    learned_from: the look-back of `version`. None if the search did not choose the look-back.
    rows: the number of labels in the period.
    served: the metric of `version` on these labels. None without labels or version.
    left_alone: the metric of the first promoted version on these labels, as if no training had followed. None without
        labels or version.
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
    """The result of a replay.

    model: the name in the model file.
    name: the name of the replay in the histories and in MLflow.
    metric: the metric of `gates.champion`.
    steps: the steps, the oldest first.
    rows: the number of labels in all steps with a version that serves.
    served: the metric over these labels, each predicted by the version that served at its time.
    left_alone: the metric of the first promoted version over these labels, as if no training had followed.
    """

    model: str
    name: str
    metric: str
    steps: tuple[Step, ...]
    rows: int
    served: float
    left_alone: float


@dataclass(frozen=True, slots=True)
class _JudgedStep:
    """A step with its judged rows: the predictions of the version that serves, and those of the first version."""

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
    progress: Progress = lambda text: None,
) -> Replay:
    """Train at `start`, then at the end of each interval `every`, and score the labels until `end`.

    Promotions need no approval. A step fails if its data is rejected, as in operation. The champion then serves on.

    start, end: UTC.
    every: the time from one training to the next, such as `1mo` or `7d`.
    trials: the number of trials per training. None for the number in the model file.

    Raises: DataRefused if the data has no time, or if no version served a label; Unreachable; AccessDenied.
    """
    if not spec.timed:
        raise DataRefused(f"{spec.name}: its data has no time (source.event_time), so there is no past to replay")
    name = f"{spec.name[:31]}-replay-{uuid4().hex[:8]}"
    times = list(step_times(start, end, every))
    load = cache(lambda version: registry.load(settings, name, version))
    judged_steps: list[_JudgedStep] = []
    first_version: int | None = None
    for window_end, until in zip(times, [*times[1:], end], strict=True):
        progress(f"{name}: {window_end:%Y-%m-%d}")
        verdict, reason = _train(settings, spec, name=name, window_end=window_end, trials=trials)
        version = _find_champion(settings, name)
        first_version = first_version or version
        labels = _read_labels(settings, spec, after=window_end, until=until)
        served, left_alone = (
            judge_labels(load(number), labels, spec=spec) if number and len(labels) else None
            for number in (version, first_version)
        )
        metric = spec.gates.champion.metric
        values = (None if rows is None else metric_value(metric, rows) for rows in (served, left_alone))
        look_back = _find_look_back(settings, name, version)
        step = Step(window_end, until, verdict, reason, version, look_back, len(labels), *values)
        judged_steps.append(_JudgedStep(step, served, left_alone))
    return _summarize(judged_steps, spec=spec, name=name)


def step_times(start: datetime, end: datetime, every: str) -> Iterator[datetime]:
    """Yield the times of the trainings: `start`, and then one time per interval `every`, before `end`.

    every: a number of calendar months such as `2mo`, or a duration such as `7d`.

    Raises: DataRefused if `every` is neither of these, or if there is no time before `end`.
    """
    match = re.fullmatch(r"(\d+)mo", every.strip())
    months = int(match[1]) if match else 0
    try:
        length = timedelta(0) if match else duration(every)
    except ValueError as error:
        raise DataRefused(f"--every: {error}, or months like 1mo") from None
    if start >= end or not (months or length):
        raise DataRefused(f"there is no step of {every} between {start:%Y-%m-%d} and {end:%Y-%m-%d}")
    number, step_time = 0, start
    while step_time < end:
        yield step_time
        number += 1
        step_time = _months_after(start, number * months) + number * length


def _months_after(moment: datetime, months: int) -> datetime:
    """The time `months` later on the same day of the month, or on the last day of a shorter month."""
    years, month_index = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month_index + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def _train(
    settings: Settings, spec: ModelSpec, *, name: str, window_end: datetime, trials: int | None
) -> tuple[str, str]:
    """Run a training, and put the candidate into service if the verdict is to promote. Return verdict and reason."""
    run_id = f"{name}/{window_end:%Y-%m-%dT%H:%M:%S}"
    reason = f"replay of {window_end:%Y-%m-%d %H:%M}"
    training_steps.begin(
        settings, spec, model=name, run_id=run_id, reason=reason, window_end=window_end, trials=trials, now=utc_now()
    )
    try:
        verdict = training_steps.run_all_steps(settings, run_id)
        if verdict["verdict"] == "promote":
            _put_into_service(settings, name, run_id)
    except (DataRefused, IntegrityError) as error:
        return "failed", str(error)
    return str(verdict["verdict"]), str(verdict["reason"])


def _put_into_service(settings: Settings, name: str, run_id: str) -> None:
    claim = promote.claim(settings, model=name, run_id=run_id, now=utc_now())
    version = promote.promote(settings, decision_id=claim["decision"])
    rollout.roll_out(
        settings,
        model=name,
        version=version,
        caused_by=run_id,
        reason=claim["why"],
        now=utc_now(),
        decision_id=claim["decision"],
    )


def _find_champion(settings: Settings, name: str) -> int | None:
    with session(settings, "pipeline") as connection:
        row = deployments.champion(connection, name)
    return int(row["version"]) if row else None


def _find_look_back(settings: Settings, name: str, version: int | None) -> str | None:
    """Find the look-back of a version. None if the search did not choose the look-back."""
    if version is None:
        return None
    run = training_runs.load_run(settings, registry.version_tags(settings, name, version)["run_id"])
    return (run.best_params or {}).get(LOOK_BACK_KEY)


def _read_labels(settings: Settings, spec: ModelSpec, *, after: datetime, until: datetime) -> pd.DataFrame:
    """Read the labels of a step in their present state, with the features that were available at their event times."""
    return training_frame(
        settings,
        spec.store,
        start=after,
        until=until,
        window_end=max(utc_now(), until),
        commit_seq=latest_commit_seq(settings, spec.name),
    )


def judge_labels(bundle: Bundle, labels: pd.DataFrame, *, spec: ModelSpec) -> JudgedRows:
    """Score the rows of `labels`, a frame from `training_frame`, and join the scores with the true labels."""
    scores = score(bundle.model, pool_from_frame(labels, spec=spec, label=False), spec=spec)
    return judge(labels[spec.label.column].to_numpy(), scores, spec=spec)


def _summarize(judged_steps: list[_JudgedStep], *, spec: ModelSpec, name: str) -> Replay:
    """Compute the metrics of a replay over all steps with a version that serves."""
    pairs = [(judged.served, judged.left_alone) for judged in judged_steps if judged.served and judged.left_alone]
    if not pairs:
        reasons = "; ".join(dict.fromkeys(judged.step.reason for judged in judged_steps))
        raise DataRefused(f"{spec.name}: no version served any label in the replay: {reasons[:500]}")
    metric = spec.gates.champion.metric
    served, left_alone = (concatenate_rows([pair[side] for pair in pairs]) for side in (0, 1))
    return Replay(
        model=spec.name,
        name=name,
        metric=metric,
        steps=tuple(judged.step for judged in judged_steps),
        rows=len(served.truth),
        served=metric_value(metric, served),
        left_alone=metric_value(metric, left_alone),
    )


def concatenate_rows(parts: list[JudgedRows]) -> JudgedRows:
    """Concatenate judged rows of the same model."""
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return JudgedRows(
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.predicted for part in parts]),
        np.concatenate(probabilities) if probabilities else None,
        parts[0].classes,
    )
