"""Split: divide a snapshot into rows that a model learns from, is tuned on, and is judged on."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipelines.spec import EntitySplit, ModelSpec
from utils.errors import MissingLabels


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of a snapshot's rows. In a split by time, each part is newer than the part before it."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def split_rows(frame: pd.DataFrame, *, spec: ModelSpec, until: pd.Timestamp) -> Split:
    """Split by time back from `until` (the newest event time that a label may have), or by entity.

    A split by entity uses a hash of model and entity, not a seed. An entity is in the same part in every training, so
    no later version learns from the rows that judge it.

    Raises:
        MissingLabels: a part is empty, or the training part lacks a class.
    """
    rule = spec.training.split
    if isinstance(rule, EntitySplit):
        share = frame["entity_id"].map(
            {entity: entity_share(spec.name, entity) for entity in frame["entity_id"].unique()}
        )
        test, validation = share < rule.test, (share >= rule.test) & (share < rule.test + rule.validation)
    else:
        test_start = until - rule.test
        test = frame["event_time"] > test_start
        validation = ~test & (frame["event_time"] > test_start - rule.validation)
    parts = Split(frame[~test & ~validation], frame[validation], frame[test])
    for name in ("train", "validation", "test"):
        if getattr(parts, name).empty:
            raise MissingLabels(
                model=spec.name,
                detail=f"no labels for the {name} part of {len(frame):,} rows: widen "
                "training.window or shorten training.split",
            )
    if absent := set(spec.label.classes) - set(parts.train[spec.label.column]):
        raise MissingLabels(model=spec.name, detail=f"the training rows have no label {', '.join(sorted(absent))}")
    return parts


def entity_share(model: str, entity: str) -> float:
    """A number in [0, 1) that never changes for an entity of a model. The numbers of entities are evenly spread."""
    digest = hashlib.sha256(f"{model}\0{entity}".encode()).digest()
    return float(np.frombuffer(digest[:8], dtype="<u8")[0] / 2.0**64)
