"""Split: divide the rows of a snapshot into a training, a validation and a test part."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipelines.spec import EntitySplit, ModelSpec
from utils.errors import MissingLabels


@dataclass(frozen=True, slots=True)
class Split:
    """The disjoint parts of a snapshot's rows. In a split by time, each part is newer than the part before it.

    train: the rows that a model learns from.
    validation: the rows on which the search compares parameters.
    test: the rows on which the candidate is judged.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def split_rows(frame: pd.DataFrame, *, spec: ModelSpec, until: pd.Timestamp) -> Split:
    """Split the rows by time or by entity, as the model file sets.

    A split by entity uses a hash of model and entity. So an entity is in the same part in every training, and a later
    version never learns from test rows.

    until: the newest event time that a label may have. A split by time counts back from it.

    Raises:
        MissingLabels: a part is empty, or the training part lacks a class.
    """
    split = spec.training.split
    if isinstance(split, EntitySplit):
        entity_shares = frame["entity_id"].map(
            {entity: entity_share(spec.name, entity) for entity in frame["entity_id"].unique()}
        )
        in_test = entity_shares < split.test
        in_validation = ~in_test & (entity_shares < split.test + split.validation)
    else:
        test_start = until - split.test
        in_test = frame["event_time"] > test_start
        in_validation = ~in_test & (frame["event_time"] > test_start - split.validation)
    parts = Split(frame[~in_test & ~in_validation], frame[in_validation], frame[in_test])
    for name in ("train", "validation", "test"):
        if getattr(parts, name).empty:
            raise MissingLabels(
                model=spec.name,
                detail=f"no labels for the {name} part of {len(frame):,} rows: widen "
                "training.window or shorten training.split",
            )
    if absent_classes := set(spec.label.classes) - set(parts.train[spec.label.column]):
        raise MissingLabels(
            model=spec.name, detail=f"the training rows have no label {', '.join(sorted(absent_classes))}"
        )
    return parts


def entity_share(model: str, entity: str) -> float:
    """A fixed number in [0, 1) for an entity of a model. The numbers of many entities are evenly distributed."""
    digest = hashlib.sha256(f"{model}\0{entity}".encode()).digest()
    return float(np.frombuffer(digest[:8], dtype="<u8")[0] / 2.0**64)
