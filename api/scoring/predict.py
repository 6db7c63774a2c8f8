"""Answers and log rows for validated rows, made by one version of the model."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from api.requests.idempotency import IdempotencyKey
from api.requests.row_type import Row, features_json
from db.log.prediction_ids import created_at, new_ids, repeatable_id, to_millisecond
from pipelines.artifact.bundle import Bundle
from pipelines.artifact.learner import Scores, pool_from_rows, score
from pipelines.artifact.profile import make_warnings_function

FEW = 1_000  # rows up to which one thread scores faster than several


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version that serves. It is never changed, only replaced as a whole. Times are UTC.

    model, number: its name and number in the registry.
    bundle: its trees, model file and golden rows.
    categories: the categories seen in training, by feature.
    tags: its tags in the registry.
    deployed_at: when it was decided that it should serve.
    serving_since: when this worker began to serve it.
    """

    model: str
    number: int
    bundle: Bundle
    categories: Mapping[str, frozenset[str]]
    tags: Mapping[str, str]
    deployed_at: datetime
    serving_since: datetime

    @property
    def fitted_until(self) -> datetime | None:
        """The newest label that it learned from, UTC. None if the data has no time."""
        tag = self.tags.get("fitted_until") if self.bundle.spec.timed else None
        return datetime.fromisoformat(tag) if tag else None


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a row.

    arrived: when its request arrived, in seconds of `perf_counter`.
    place: its place in the request, from 0.
    key: the request's idempotency key, if it has one.
    doubts: warnings about the row that its values do not show.
    """

    arrived: float
    place: int = 0
    key: IdempotencyKey | None = None
    doubts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer and its log row, in the order of `db.log.writing.LOG_COLUMNS`. The row is logged first."""

    answer: dict[str, Any]
    log_row: tuple[Any, ...]


def predict(
    version: LoadedVersion, rows: Sequence[Row], *, instance: UUID, origins: Sequence[Origin], now: datetime
) -> list[Prediction]:
    """Score `rows`. `origins` has one origin a row, `now` is UTC."""
    values = [tuple(row.values()) for row in rows]
    scores = _scores(version.bundle, values)
    scored_at = time.perf_counter()
    features = [features_json(row) for row in rows]
    ids = _ids(version, values, features, origins=origins, now=now)
    by_class = _by_class(scores, version.bundle.spec.label.classes)
    doubts = make_warnings_function(version.bundle.spec, version.categories)
    name, number, instance_id = version.model, version.number, str(instance)
    predictions = []
    for i, (prediction_id, created) in enumerate(ids):
        predicted, probabilities, origin = scores.predictions[i], by_class[i], origins[i]
        confidence = max(probabilities.values()) if probabilities else None
        warnings = [*origin.doubts, *doubts(values[i][1:])]
        answer = {
            "prediction_id": prediction_id,
            "entity_id": values[i][0],
            "prediction": predicted,
            "confidence": confidence,
            "probabilities": probabilities,
            "warnings": warnings,
            "model": name,
            "version": number,
        }
        log_row = (
            prediction_id,
            name,
            number,
            "champion",
            values[i][0],
            features[i],
            str(predicted),
            confidence,
            _json(probabilities) if probabilities else None,
            _json(warnings) if warnings else "[]",
            (scored_at - origin.arrived) * 1000,
            instance_id,
            created,
            now,
        )
        predictions.append(Prediction(answer, log_row))
    return predictions


def _scores(bundle: Bundle, values: Sequence[Sequence[Any]]) -> Scores:
    """The model's scores of `values`. Each row is an entity and its features."""
    threads = 1 if len(values) <= FEW else -1
    pool = pool_from_rows([row[1:] for row in values], spec=bundle.spec, threads=threads)
    return score(bundle.model, pool, spec=bundle.spec, threads=threads)


def _by_class(scores: Scores, classes: Sequence[str]) -> Sequence[dict[str, float] | None]:
    """Each row's probabilities by class. None for regression."""
    if scores.probabilities is None:
        return [None] * len(scores.predictions)
    return [dict(zip(classes, probabilities, strict=True)) for probabilities in scores.probabilities.tolist()]


def _ids(
    version: LoadedVersion,
    values: Sequence[Sequence[Any]],
    features: Sequence[str],
    *,
    origins: Sequence[Origin],
    now: datetime,
) -> list[tuple[str, datetime]]:
    """The prediction id of each row and the time in the id. The id is new or derived from the request's key."""
    created = to_millisecond(now)
    ids = [(new_id, created) for new_id in new_ids(now, len(values))]
    for i, origin in enumerate(origins):
        if origin.key is not None:
            content = [origin.key.name, origin.place, version.model, version.number, values[i][0], features[i]]
            derived_id = repeatable_id(origin.key.first, json.dumps(content))
            ids[i] = (str(derived_id), created_at(derived_id))
    return ids


def _json(content: object) -> str:
    return to_json(content).decode()
