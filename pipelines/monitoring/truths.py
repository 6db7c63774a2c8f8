"""What became known of logged predictions: the label of each, and which of them may judge a version."""

import json
from datetime import timedelta

import numpy as np
import pandas as pd

from pipelines.artifact.features import Scores
from pipelines.measures.metrics import Judged, judge
from pipelines.runs.training_runs import Run
from pipelines.spec import ModelSpec

COLUMNS = ["prediction_id", "entity_id", "created_at", "prediction", "probabilities", "truth"]


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
        left_on="created_at", right_on="event_time", by="entity_id", tolerance=pd.Timedelta(match),
    )  # fmt: skip
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


def judged_rows(labelled: pd.DataFrame, *, spec: ModelSpec) -> Judged:
    """Logged predictions beside their truth; columns prediction, probabilities (JSON text), truth."""
    probabilities = None
    if spec.task != "regression":
        told = [json.loads(each) for each in labelled["probabilities"]]
        probabilities = np.array([[row.get(name, 0.0) for name in spec.label.classes] for row in told])
    return judge(labelled["truth"].to_numpy(), Scores(labelled["prediction"].to_list(), probabilities), spec=spec)
