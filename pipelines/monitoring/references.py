"""What monitoring holds a version's predictions against: its profile, how it was judged, and what it learned from."""

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
from pipelines.artifact.profile import counts
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
    """`run` is the training that made the version; None where this database knows of none."""

    bundle: Bundle
    profile: dict[str, Any]
    fitted_until: datetime
    run: Run | None


@dataclass(slots=True)
class References:
    """The references of a model's versions, each fetched once."""

    settings: Settings
    model: str
    _known: dict[int, Reference] = field(default_factory=dict)

    def reference(self, version: int) -> Reference:
        """Raises: NotFound, Unreachable."""
        if version not in self._known:
            self._known[version] = self._fetch(version)
        return self._known[version]

    def judged(self, version: int, metric: str) -> float | None:
        """The metric on the test rows that the version was judged by, or None where that is not recorded."""
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
            known = trainings.find_run(connection, tags["run_id"]) is not None
        run = training_runs.load_run(self.settings, tags["run_id"]) if known else None
        return Reference(bundle, profile, registry.fitted_until(tags), run)


def newest_rows(training: RowMapping, *, spec: ModelSpec, settings: Settings) -> pd.DataFrame:
    """The newest rows that a training had: those of its last monitoring window, or as many as a window must have.

    `training` is its row. Raises: NotFound where it has no snapshot or its file is gone; IntegrityError.
    """
    if training["snapshot_id"] is None:
        raise NotFound(what="snapshot", where=f"training run {training['run_id']}")
    rows = read_snapshot(training["snapshot_id"], settings=settings).frame.sort_values("event_time", kind="stable")
    times = rows["event_time"]
    recent = int((times > times.max() - pd.Timedelta(spec.monitoring.window)).sum())
    return rows.iloc[-max(recent, spec.monitoring.min_rows) :]


def counts_of(rows: pd.DataFrame, reference: Reference) -> dict[str, np.ndarray]:
    """Counts of the features of `rows`, and of what the version predicts for them, over the bins of its profile.

    A feature that `rows` does not have is missing in all of them.
    """
    spec, profile = reference.bundle.spec, reference.profile
    known = rows.reindex(columns=list(spec.features.columns))
    predicted = score(reference.bundle.model, pool_from_frame(known, spec=spec, label=False), spec=spec).predictions
    found = {name: counts(known[name], entry) for name, entry in profile["features"].items()}
    return {**found, PREDICTION: counts(pd.Series(predicted), profile["prediction"])}
