"""From validated rows to answers and log rows, by one version of the model."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from api.repeats import Key
from api.schemas import Schemas, features_json
from db.predictions import created_at, new_id, repeatable_id
from pipelines.bundle import Bundle
from pipelines.features import pool_from_rows, score
from pipelines.profile import warnings_of

FEW = 1_000  # rows up to which one thread scores faster than several


@dataclass(frozen=True, slots=True)
class Version:
    """A version that serves: never changed, only replaced as a whole. Times are UTC; `tags` are the registry's."""

    model: str
    number: int
    bundle: Bundle
    categories: Mapping[str, frozenset[str]]
    tags: Mapping[str, str]
    deployed_at: datetime
    serving_since: datetime


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: its place in the request, the request's key; `arrived` in seconds of `perf_counter`.

    `doubts` are warnings about it that its values do not show.
    """

    arrived: float
    place: int = 0
    key: Key | None = None
    doubts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer, and the row that must be in the log before it leaves (`db.predictions.LOG_COLUMNS`)."""

    answer: dict[str, Any]
    log_row: tuple[Any, ...]


def predict(
    version: Version,
    rows: Sequence[BaseModel],
    *,
    schemas: Schemas,
    instance: UUID,
    origins: Sequence[Origin],
    now: datetime,
) -> list[Prediction]:
    """Score `rows`, each with its origin. `now` is UTC."""
    values = [schemas.values(row) for row in rows]
    spec = version.bundle.spec
    pool = pool_from_rows([each[1:] for each in values], spec=spec)
    scores = score(version.bundle.model, pool, spec=spec, threads=1 if len(rows) <= FEW else -1)
    scored = time.perf_counter()
    probabilities = None if scores.probabilities is None else scores.probabilities.tolist()
    return [
        _prediction(
            version,
            values[i],
            features=features_json(row),
            predicted=scores.predictions[i],
            by_class=dict(zip(spec.label.classes, probabilities[i], strict=True)) if probabilities else None,
            instance=instance,
            origin=origins[i],
            latency_ms=(scored - origins[i].arrived) * 1000,
            now=now,
        )
        for i, row in enumerate(rows)
    ]


def _prediction(
    version: Version,
    values: Sequence[Any],
    *,
    features: str,
    predicted: str | float,
    by_class: dict[str, float] | None,
    instance: UUID,
    origin: Origin,
    latency_ms: float,
    now: datetime,
) -> Prediction:
    if origin.key is None:
        prediction_id = new_id(now)
    else:
        content = json.dumps([origin.key.name, origin.place, version.model, version.number, values[0], features])
        prediction_id = repeatable_id(origin.key.first, content)
    confidence = max(by_class.values()) if by_class else None
    warnings = [*origin.doubts, *warnings_of(values[1:], spec=version.bundle.spec, seen=version.categories)]
    answer = {
        "prediction_id": str(prediction_id),
        "entity_id": values[0],
        "prediction": predicted,
        "confidence": confidence,
        "probabilities": by_class,
        "warnings": warnings,
        "model": version.model,
        "version": version.number,
    }
    log_row = (
        answer["prediction_id"],
        version.model,
        version.number,
        "champion",
        values[0],
        features,
        str(predicted),
        confidence,
        json.dumps(by_class, ensure_ascii=False) if by_class else None,
        json.dumps(warnings, ensure_ascii=False),
        latency_ms,
        str(instance),
        created_at(prediction_id),
        now,
    )
    return Prediction(answer, log_row)
