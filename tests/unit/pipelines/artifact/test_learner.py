"""The learner fits text features, and rejects rows on which CatBoost would fail."""

import numpy as np
import pandas as pd
import pytest

from pipelines.artifact.learner import fit, pool_from_frame, score
from pipelines.spec import ModelSpec
from utils.errors import DataRefused

PARAMS = {"depth": 3, "learning_rate": 0.3, "l2_leaf_reg": 1}
TASKS = {"regression": {}, "binary": {"classes": ["low", "high"]}}


def spec(task: str) -> ModelSpec:
    columns = {"size": {"type": "numeric"}, "note": {"type": "text"}}
    label = {"column": "price", **TASKS[task]}
    return ModelSpec.parse(
        {"name": "cars", "task": task, "entity": "car", "label": label, "features": {"columns": columns}},
        file="cars.yaml",
    )


def rows(task: str, notes: list[str | None]) -> pd.DataFrame:
    """Forty rows per note. The price is high if the note has the word `new`."""
    note = pd.Series(notes * 40, dtype=object)
    price = 100.0 * note.fillna("").str.contains("new") + np.arange(len(note)) % 7
    label = price if task == "regression" else np.where(price > 50, "high", "low")
    return pd.DataFrame({"size": np.arange(len(note)) % 7, "note": note, "price": label})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("notes", [["new", "old"], ["new tyre, blue", "old tyre", None]])
def test_a_model_of_each_task_learns_from_short_texts(task: str, notes: list[str | None]) -> None:
    model_spec, frame = spec(task), rows(task, notes)
    model = fit(frame, spec=model_spec, params=PARAMS, trees=40)
    predicted = score(model, pool_from_frame(frame, spec=model_spec, label=False), spec=model_spec).predictions
    is_high = frame["note"].fillna("").str.contains("new").to_numpy()
    if task == "regression":
        assert np.mean(np.array(predicted)[is_high]) - np.mean(np.array(predicted)[~is_high]) > 80
    else:
        assert (np.array(predicted) == np.where(is_high, "high", "low")).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_error_for_a_text_feature_without_words_names_the_feature(task: str) -> None:
    with pytest.raises(DataRefused, match="words in the text feature note"):
        fit(rows(task, [None, " "]), spec=spec(task), params=PARAMS, trees=5)
