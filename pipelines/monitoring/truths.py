"""What became known of logged predictions: the truth of each, and which truths may judge a version.

A prediction's truth is, in this order: what a client reported for its id; else the newest label of its entity that is
dated no later than the prediction and no more than `monitoring.performance.match` before it. A label's event time is
when a prediction would have been made, so a later one answers a later question, and an older one a question long
settled. Of data without time an entity has one label. Labels that a version learned from don't judge it.
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from db.log import reading
from db.store.point_in_time import labels_between
from pipelines.artifact.learner import Scores
from pipelines.measures.metrics import JudgedRows, judge
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec
from utils.settings import Settings

COLUMNS = ["prediction_id", "entity_id", "created_at", "prediction", "probabilities", "truth"]


@dataclass(frozen=True, slots=True)
class Truths:
    """labels: entity_id, event_time, truth, commit_seq, as the store has them. reported: truth by prediction_id."""

    spec: ModelSpec
    labels: pd.DataFrame
    reported: pd.Series

    @property
    def empty(self) -> bool:
        return self.labels.empty and self.reported.empty

    def not_learned_by(self, run: Run | None) -> "Truths":
        """Without the labels that `run` could read when it trained; all of them where there is no such run."""
        return replace(self, labels=not_learned(self.labels, run))

    def known(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Those of `predictions` whose truth is known, with it in a new column `truth`.

        predictions: prediction_id, entity_id, created_at and whatever else.
        """
        spec = self.spec
        reported = usable(predictions["prediction_id"].map(self.reported), spec)
        match = spec.monitoring.performance.match
        found = usable(match_labels(predictions, self.labels, timed=spec.timed, match=match), spec)
        rows = predictions.assign(truth=reported.combine_first(found))
        return rows[rows["truth"].notna()]


def read_truths(settings: Settings, spec: ModelSpec, *, start: datetime, end: datetime, known_by: datetime) -> Truths:
    """What became known by `known_by` of the predictions of [start, end).

    Raises: Unreachable, AccessDenied, SettingMissing.
    """
    match = spec.monitoring.performance.match
    labels = labels_between(settings, spec.store, after=start - match, until=end, known_by=known_by)
    reported = reading.feedback(settings, spec.name, start=start, end=end).to_pandas()
    return Truths(spec, labels, reported.set_index("prediction_id")["truth"])


def match_labels(predictions: pd.DataFrame, labels: pd.DataFrame, *, timed: bool, match: timedelta) -> pd.Series:
    """The label of each prediction, missing where it has none, in the order of `predictions`.

    predictions: entity_id, created_at. labels: entity_id, event_time, truth; one row an entity and event time.
    """
    if labels.empty:
        return pd.Series(np.nan, index=predictions.index, dtype=object)
    if not timed:
        by_entity = labels.drop_duplicates("entity_id", keep="last").set_index("entity_id")["truth"]
        return predictions["entity_id"].map(by_entity)
    joined = pd.merge_asof(
        predictions.reset_index(names="place").astype({"created_at": "datetime64[us]"}).sort_values("created_at"),
        labels.astype({"event_time": "datetime64[us]"}).sort_values("event_time"),
        left_on="created_at",
        right_on="event_time",
        by="entity_id",
        tolerance=pd.Timedelta(match),
    )
    return joined.set_index("place")["truth"].reindex(predictions.index)


def not_learned(labels: pd.DataFrame, run: Run | None) -> pd.DataFrame:
    """Without the labels that `run` could read when it trained."""
    if run is None:
        return labels
    learned = (labels["commit_seq"] <= run.commit_seq) & (
        labels["event_time"] <= run.window_end - run.spec.label.maturity
    )
    return labels[~learned]


def usable(truth: pd.Series, spec: ModelSpec) -> pd.Series:
    """Numbers for a regression, names of the model's own classes otherwise; anything else is missing."""
    if spec.task == "regression":
        return pd.to_numeric(truth, errors="coerce").astype(object)
    return truth.astype(object).where(truth.isin(spec.label.classes))


def judged_rows(labelled: pd.DataFrame, *, spec: ModelSpec) -> JudgedRows:
    """Logged predictions beside their truth; columns prediction, probabilities (JSON text), truth."""
    probabilities = None
    if spec.task != "regression":
        told = [json.loads(each) for each in labelled["probabilities"]]
        probabilities = np.array([[row.get(name, 0.0) for name in spec.label.classes] for row in told])
    return judge(labelled["truth"].to_numpy(), Scores(labelled["prediction"].to_list(), probabilities), spec=spec)
