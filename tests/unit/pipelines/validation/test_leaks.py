"""Leaks, which are features that alone predict the label: found in every form, without false alarms."""

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
    """The text of `leak` for a feature with `values` in rows with `label`. None without a leak."""
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


CHOSEN = DRAW.integers(0, 3, ROWS)
WORDS = np.array(CLASSES["multiclass"], dtype=object)[CHOSEN]
NUMBERS = DRAW.lognormal(5, 2, ROWS)
NOISE = DRAW.normal(size=ROWS)


@pytest.mark.parametrize(
    ("task", "label", "values", "expected"),
    [
        ("multiclass", WORDS, WORDS, "is the label itself"),
        ("multiclass", WORDS, np.array(["c7", "a1", "b3"], dtype=object)[CHOSEN], "alone tells"),
        ("multiclass", WORDS, np.array([5.0, 1.0, 3.0])[CHOSEN] + NOISE / 100, "alone tells"),
        ("multiclass", WORDS, np.where(CHOSEN == 1, 40.0 + NOISE, np.nan), "'mid' .* being missing or not"),
        ("multiclass", WORDS, np.where(NOISE > 0, WORDS, np.array(None)), "is the label itself"),
        ("binary", np.where(abs(NOISE) > 1, "yes", "no").astype(object), NOISE, "from the rest"),
        ("regression", NUMBERS, NUMBERS, "is the label itself"),
        ("regression", NUMBERS, np.log(NUMBERS) * -3, "of the label's order"),
        ("regression", NUMBERS, np.where(NOISE > 0, np.round(NUMBERS), np.nan), "of the label's order"),
    ],
    ids=[
        "copy",
        "coded",
        "coded as numbers",
        "present for one class",
        "copy with gaps",
        "far from zero",
        "number",
        "transformed",
        "rounded, with gaps",
    ],
)
def test_a_feature_that_was_written_after_the_label_is_found(
    task: str, label: np.ndarray, values: object, expected: str
) -> None:
    text = leak_text(task, label, values)
    assert text is not None
    assert pd.Series([text]).str.contains(expected).all(), text


@pytest.mark.parametrize(
    ("task", "label", "values"),
    [
        ("multiclass", WORDS, NOISE),
        ("multiclass", WORDS, CHOSEN + NOISE * 0.6),
        ("multiclass", WORDS, np.where(NOISE > 0, 1.0, np.nan)),
        ("multiclass", WORDS, np.full(ROWS, np.nan)),
        ("multiclass", WORDS, np.array([f"unique {i}" for i in range(ROWS)], dtype=object)),
        ("regression", NUMBERS, np.log(NUMBERS) + NOISE),
        ("regression", np.full(ROWS, 3.0), NOISE),
    ],
    ids=["noise", "strong", "gaps at random", "empty", "a name a row", "strong for a number", "constant label"],
)
def test_a_feature_without_a_leak_has_no_finding(task: str, label: np.ndarray, values: object) -> None:
    assert leak_text(task, label, values) is None


def test_a_category_that_only_one_entity_has_is_no_leak_though_its_label_stays_the_same() -> None:
    entity = np.arange(ROWS) % 100
    label = np.array(CLASSES["binary"], dtype=object)[entity % 2]
    account = np.array([f"account {number}" for number in entity], dtype=object)
    assert leak_text("binary", label, account, entities=100) is None
    assert leak_text("binary", label, account, entities=ROWS) is not None  # the same names shared by many entities


def test_too_few_rows_prove_no_leak() -> None:
    assert leak_text("multiclass", WORDS[:40], WORDS[:40]) is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 0.75])), min_size=2, max_size=60))
def test_the_auc_is_that_of_scikit_learn(rows: list[tuple[bool, float]]) -> None:
    truth, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if truth.all() or not truth.any():
        return
    area = auc(scores, truth.astype(np.int64), (~truth).astype(np.int64))
    assert area == pytest.approx(roc_auc_score(truth, scores))


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=80))
def test_codes_keep_the_order_of_numbers_and_mark_missing_values(values: list[float | None]) -> None:
    series = pd.Series(values, dtype=float)
    codes, distinct = encode(series, numeric=True)
    assert distinct == series.nunique()
    assert ((codes < 0) == series.isna()).all()
    present = series.notna()
    assert pd.Series(codes[present])[np.argsort(series[present].to_numpy(), kind="stable")].is_monotonic_increasing
