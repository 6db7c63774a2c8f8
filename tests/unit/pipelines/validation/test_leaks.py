"""Leaks: features that alone predict the label are found in many forms, and other features raise no alarm."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipelines.spec import ModelSpec
from pipelines.validation.leaks import auc, build_target, describe_leak, encode

ROWS = 600
DRAW = np.random.default_rng(7)
CLASSES = {"binary": ["no", "yes"], "multiclass": ["low", "mid", "high"]}


def leak_text(task: str, label: np.ndarray, values: object, *, entities: int = ROWS) -> str | None:
    """The result of `describe_leak` for one feature. `values` and `label` have one element per row."""
    feature = pd.Series(values)
    numeric = pd.api.types.is_numeric_dtype(feature)
    file = {
        "name": "m",
        "task": task,
        "entity": "id",
        "label": {"column": "y", "classes": CLASSES.get(task, [])},
        "features": {"columns": {"x": {"type": "numeric" if numeric else "categorical"}}},
    }
    frame = pd.DataFrame({"entity_id": [f"e{i % entities}" for i in range(len(label))], "y": label})
    codes, _ = encode(feature, numeric=numeric)
    target = build_target(frame, spec=ModelSpec.parse(file, file="m.yaml"))
    return describe_leak(feature, codes, target, label=frame["y"])


CLASS_NUMBERS = DRAW.integers(0, 3, ROWS)
CLASS_NAMES = np.array(CLASSES["multiclass"], dtype=object)[CLASS_NUMBERS]
NUMBERS = DRAW.lognormal(5, 2, ROWS)
NOISE = DRAW.normal(size=ROWS)


@pytest.mark.parametrize(
    ("task", "label", "values", "expected"),
    [
        ("multiclass", CLASS_NAMES, CLASS_NAMES, "is the label itself"),
        ("multiclass", CLASS_NAMES, np.array(["c7", "a1", "b3"], dtype=object)[CLASS_NUMBERS], "alone tells"),
        ("multiclass", CLASS_NAMES, np.array([5.0, 1.0, 3.0])[CLASS_NUMBERS] + NOISE / 100, "alone tells"),
        (
            "multiclass",
            CLASS_NAMES,
            np.where(CLASS_NUMBERS == 1, 40.0 + NOISE, np.nan),
            "'mid' .* being missing or not",
        ),
        ("multiclass", CLASS_NAMES, np.where(NOISE > 0, CLASS_NAMES, np.array(None)), "is the label itself"),
        ("binary", np.where(abs(NOISE) > 1, "yes", "no").astype(object), NOISE, "from the rest"),
        ("regression", NUMBERS, NUMBERS, "is the label itself"),
        ("regression", NUMBERS, np.log(NUMBERS) * -3, "of the label's order"),
        ("regression", NUMBERS, np.where(NOISE > 0, np.round(NUMBERS), np.nan), "of the label's order"),
    ],
    ids=[
        "copied classes",
        "coded classes",
        "classes coded as numbers",
        "present only for one class",
        "copied classes with gaps",
        "distance from zero",
        "copied numbers",
        "transformed numbers",
        "rounded numbers with gaps",
    ],
)
def test_a_feature_that_reveals_the_label_is_a_leak(
    task: str, label: np.ndarray, values: object, expected: str
) -> None:
    text = leak_text(task, label, values)
    assert text is not None
    assert pd.Series([text]).str.contains(expected).all(), text


@pytest.mark.parametrize(
    ("task", "label", "values"),
    [
        ("multiclass", CLASS_NAMES, NOISE),
        ("multiclass", CLASS_NAMES, CLASS_NUMBERS + NOISE * 0.6),
        ("multiclass", CLASS_NAMES, np.where(NOISE > 0, 1.0, np.nan)),
        ("multiclass", CLASS_NAMES, np.full(ROWS, np.nan)),
        ("multiclass", CLASS_NAMES, np.array([f"unique {i}" for i in range(ROWS)], dtype=object)),
        ("regression", NUMBERS, np.log(NUMBERS) + NOISE),
        ("regression", np.full(ROWS, 3.0), NOISE),
    ],
    ids=[
        "noise",
        "strong feature",
        "gaps at random",
        "empty feature",
        "one name per row",
        "strong feature for numbers",
        "constant label",
    ],
)
def test_a_feature_that_does_not_reveal_the_label_is_no_leak(task: str, label: np.ndarray, values: object) -> None:
    assert leak_text(task, label, values) is None


def test_a_category_is_a_leak_only_if_several_entities_have_it() -> None:
    account_numbers = np.arange(ROWS) % 100
    label = np.array(CLASSES["binary"], dtype=object)[account_numbers % 2]
    accounts = np.array([f"account {number}" for number in account_numbers], dtype=object)
    assert leak_text("binary", label, accounts, entities=100) is None
    assert leak_text("binary", label, accounts, entities=ROWS) is not None  # six entities have each account


def test_no_leak_is_reported_with_too_few_rows() -> None:
    assert leak_text("multiclass", CLASS_NAMES[:40], CLASS_NAMES[:40]) is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 0.75])), min_size=2, max_size=60))
def test_the_auc_equals_that_of_scikit_learn(rows: list[tuple[bool, float]]) -> None:
    truth, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if truth.all() or not truth.any():
        return
    area_under_curve = auc(scores, truth.astype(np.int64), (~truth).astype(np.int64))
    assert area_under_curve == pytest.approx(roc_auc_score(truth, scores))


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=80))
def test_codes_keep_the_order_of_numbers_and_mark_missing_values(values: list[float | None]) -> None:
    series = pd.Series(values, dtype=float)
    codes, distinct = encode(series, numeric=True)
    assert distinct == series.nunique()
    assert ((codes < 0) == series.isna()).all()
    present = series.notna()
    assert pd.Series(codes[present])[np.argsort(series[present].to_numpy(), kind="stable")].is_monotonic_increasing
