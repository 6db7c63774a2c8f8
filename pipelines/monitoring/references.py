"""The references that monitoring compares a version's predictions with: profile, judged metric, and training rows."""

import json
import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import RowMapping

from db.history import trainings
from db.session import session
from pipelines import registry
from pipelines.artifact.bundle import Bundle, read_bundle
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.artifact.profile import count_by_bin
from pipelines.measures.drift import PREDICTION
from pipelines.runs import training_runs
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from pipelines.training.evaluate import load_evaluation
from utils.errors import NotFound
from utils.settings import Settings


@dataclass(frozen=True, slots=True)
class Reference:
    """The files and facts of one version.

    bundle: the loaded bundle.
    profile: the content of `profile.json`.
    fitted_until: the newest event time that the version learned from (UTC).
    run: the training that made the version. None if this database does not have it.
    """

    bundle: Bundle
    profile: dict[str, Any]
    fitted_until: datetime
    run: Run | None


@dataclass(slots=True)
class References:
    """The references of a model's versions. Each is fetched once."""

    settings: Settings
    model: str
    _fetched: dict[int, Reference] = field(default_factory=dict)

    def reference(self, version: int) -> Reference:
        """Return the reference of a version. Raises: NotFound, Unreachable."""
        if version not in self._fetched:
            self._fetched[version] = self._fetch(version)
        return self._fetched[version]

    def judged(self, version: int, metric: str) -> float | None:
        """The metric on the test rows that the version was judged on. None if it is not recorded."""
        run = self.reference(version).run
        if run is None or run.mlflow_run_id is None:
            return None
        estimate = load_evaluation(run, settings=self.settings).candidate.get(metric)
        return estimate.value if estimate else None

    def _fetch(self, version: int) -> Reference:
        with tempfile.TemporaryDirectory() as folder:
            sha256 = registry.download(self.settings, self.model, version, Path(folder))
            bundle = read_bundle(Path(folder), sha256=sha256)
            profile = json.loads((Path(folder) / "profile.json").read_text(encoding="utf-8"))
        tags = registry.version_tags(self.settings, self.model, version)
        with session(self.settings, "pipeline") as connection:
            has_run = trainings.find_run(connection, tags["run_id"]) is not None
        run = training_runs.load_run(self.settings, tags["run_id"]) if has_run else None
        return Reference(bundle, profile, registry.fitted_until(tags), run)


def newest_rows(training: RowMapping, *, spec: ModelSpec, settings: Settings) -> pd.DataFrame:
    """The newest rows of a training's snapshot: one monitoring window, but at least `monitoring.min_rows` rows.

    training: the training's row.

    Raises:
        NotFound: the training has no snapshot, or the snapshot's file does not exist.
        IntegrityError.
    """
    if training["snapshot_id"] is None:
        raise NotFound(what="snapshot", where=f"training run {training['run_id']}")
    rows = read_snapshot(training["snapshot_id"], settings=settings).frame.sort_values("event_time", kind="stable")
    times = rows["event_time"]
    recent_count = int((times > times.max() - pd.Timedelta(spec.monitoring.window)).sum())
    return rows.iloc[-max(recent_count, spec.monitoring.min_rows) :]


def counts_of(rows: pd.DataFrame, reference: Reference) -> dict[str, np.ndarray]:
    """Count the features of `rows`, and the version's predictions for them, over the bins of the version's profile.

    A feature that is not a column of `rows` counts as missing in all rows.
    """
    spec, profile = reference.bundle.spec, reference.profile
    features = rows.reindex(columns=list(spec.features.columns))
    predicted = score(reference.bundle.model, pool_from_frame(features, spec=spec, label=False), spec=spec).predictions
    feature_counts = {name: count_by_bin(features[name], entry) for name, entry in profile["features"].items()}
    return {**feature_counts, PREDICTION: count_by_bin(pd.Series(predicted), profile["prediction"])}
