"""Evidence: collect the input of `trigger.decide_retraining` in three steps.

The rows are read first, in one session. Files and labels are read next. `retrain_history` builds the history from both.
"""

import logging
from collections.abc import Mapping
from datetime import datetime

import numpy as np
import pandas as pd

from db.history.retrain_rows import RetrainRows, read_rows
from db.session import session
from db.store import loads
from db.store.point_in_time import labels_between
from pipelines.monitoring.references import Reference, References, counts_of, newest_rows
from pipelines.monitoring.retrain_history import FilesAndLabels, answering, history_of
from pipelines.monitoring.trigger import WEEK, MonitoringState
from pipelines.spec import EntitySplit, ModelSpec
from utils.errors import IntegrityError, NotFound
from utils.settings import Settings

NORM = 20  # windows that determine the ordinary share of refused requests

log = logging.getLogger(__name__)


def gather(settings: Settings, spec: ModelSpec, *, now: datetime) -> MonitoringState:
    """Return the state of the model at `now` (UTC).

    Raises:
        NotFound: MLflow does not have the version that serves.
        Unreachable.
    """
    rows, new_labels = _read_rows(settings, spec, now=now)
    files = None
    if rows.serving is not None:
        reference = References(settings, spec.name).reference(int(rows.serving["version"]))
        answer = _read_answer(settings, spec, rows, reference)
        test_labels = _read_test_labels(settings, spec, now=now)
        files = FilesAndLabels(reference.profile, reference.fitted_until, answer, new_labels, test_labels)
    return history_of(rows, files, spec=spec)


def _read_rows(settings: Settings, spec: ModelSpec, *, now: datetime) -> tuple[RetrainRows, int]:
    """The rows, and the number of labels that were loaded since the last finished training."""
    since = now - max(WEEK, 2 * spec.retrain.max_wait)
    with session(settings, "pipeline") as connection:
        rows = read_rows(connection, spec.name, drift=spec.monitoring.drift.of, recent=NORM + 1, decided_since=since)
        commit_seq = rows.finished["commit_seq"] if rows.finished else 0
        return rows, loads.labels_since(connection, model=spec.name, commit_seq=commit_seq)


def _read_answer(
    settings: Settings, spec: ModelSpec, rows: RetrainRows, reference: Reference
) -> Mapping[str, np.ndarray] | None:
    """The counts of the newest rows in the snapshot of the training that answers drift. None without one."""
    training = answering(rows)
    if training is None:
        return None
    try:
        return counts_of(newest_rows(training, spec=spec, settings=settings), reference)
    except (NotFound, IntegrityError) as error:
        log.warning("every drift counts as new, the last training's snapshot is unreadable: %s", error)
        return None


def _read_test_labels(settings: Settings, spec: ModelSpec, *, now: datetime) -> pd.DataFrame | None:
    """The mature labels of a test period that ends now. None for a split by entity."""
    split = spec.training.split
    if isinstance(split, EntitySplit):
        return None
    until = now - spec.label.maturity
    return labels_between(settings, spec.store, after=until - split.test, until=until, known_by=now)
