"""The truth of logged predictions, and the labels that may judge a version.

A prediction's truth is the value that a client reported for its id. Without a report it is the entity's newest label
whose event time is not after the prediction and at most `monitoring.performance.match` before it. A label's event time
is the time at which a prediction would have been made. So a later label belongs to a later prediction, and a much older
label to an earlier one. In data without time an entity has one label. A version is not judged on labels that it learned
from.
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
    """The truths of a span of predictions.

    labels: entity_id, event_time, truth, commit_seq, as in the store.
    reported: the clients' reports, truth by prediction_id.
    """

    spec: ModelSpec
    labels: pd.DataFrame
    reported: pd.Series

    @property
    def empty(self) -> bool:
        return self.labels.empty and self.reported.empty

    def not_learned_by(self, run: Run | None) -> "Truths":
        """Leave out the labels that `run` could read when it trained. Keep all labels if `run` is None."""
        return replace(self, labels=not_learned(self.labels, run))

    def add_truths(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Add a column `truth` to `predictions`. Leave out the rows without a known truth.

        predictions: prediction_id, entity_id, created_at and any other columns.
        """
        spec = self.spec
        reported = usable(predictions["prediction_id"].map(self.reported), spec)
        match = spec.monitoring.performance.match
        matched_labels = usable(match_labels(predictions, self.labels, timed=spec.timed, match=match), spec)
        rows = predictions.assign(truth=reported.combine_first(matched_labels))
        return rows[rows["truth"].notna()]


def read_truths(settings: Settings, spec: ModelSpec, *, start: datetime, end: datetime, known_by: datetime) -> Truths:
    """Read the truths of the predictions of [start, end) that were known by `known_by` (UTC).

    Raises: Unreachable, AccessDenied, SettingMissing.
    """
    match = spec.monitoring.performance.match
    labels = labels_between(settings, spec.store, after=start - match, until=end, known_by=known_by)
    reported = reading.feedback(settings, spec.name, start=start, end=end).to_pandas()
    return Truths(spec, labels, reported.set_index("prediction_id")["truth"])


def match_labels(predictions: pd.DataFrame, labels: pd.DataFrame, *, timed: bool, match: timedelta) -> pd.Series:
    """The label of each prediction, in the order of `predictions`. Missing where a prediction has no label.

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
    """Leave out the labels that `run` could read when it trained."""
    if run is None:
        return labels
    is_learned = (labels["commit_seq"] <= run.commit_seq) & (
        labels["event_time"] <= run.window_end - run.spec.label.maturity
    )
    return labels[~is_learned]


def usable(truth: pd.Series, spec: ModelSpec) -> pd.Series:
    """Convert truths to numbers for a regression, or to names of the model's classes. Other values become missing."""
    if spec.task == "regression":
        return pd.to_numeric(truth, errors="coerce").astype(object)
    return truth.astype(object).where(truth.isin(spec.label.classes))


def judged_rows(labelled: pd.DataFrame, *, spec: ModelSpec) -> JudgedRows:
    """Join logged predictions with their truth. Columns: prediction, probabilities (JSON text), truth."""
    probabilities = None
    if spec.task != "regression":
        rows = [json.loads(text) for text in labelled["probabilities"]]
        probabilities = np.array([[row.get(name, 0.0) for name in spec.label.classes] for row in rows])
    return judge(labelled["truth"].to_numpy(), Scores(labelled["prediction"].to_list(), probabilities), spec=spec)
