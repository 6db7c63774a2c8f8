"""The demonstration changes two things in a model file: durations, and the causes that may start a training."""

import shutil

from pipelines.spec import find_spec
from pipelines.spec.sections import TimeSplit
from stack.demo.own_stack import MODEL, MONITORING_ONLY, SHORT_DURATIONS, shorten
from stack.demo.play import RATE, WINDOWS_AFTER_CHANGE, WINDOWS_BEFORE_CHANGE
from utils.duration import duration
from utils.version import ROOT


def test_only_durations_and_causes_of_training_differ_and_each_duration_is_shorter(tmp_path):
    shutil.copy(ROOT / "models" / f"{MODEL}.yaml", tmp_path)
    before = find_spec(tmp_path, MODEL).model_dump(mode="json")
    shorten(tmp_path / f"{MODEL}.yaml")
    after = find_spec(tmp_path, MODEL).model_dump(mode="json")
    changed_values = dict(differences(before, after))
    assert set(changed_values) == {*SHORT_DURATIONS, *MONITORING_ONLY}
    for key in SHORT_DURATIONS:
        old, new = changed_values[key]
        assert duration(new) < duration(old)


def test_the_demonstration_sends_enough_rows_per_window_and_watches_enough_windows_for_an_alarm(tmp_path):
    shutil.copy(ROOT / "models" / f"{MODEL}.yaml", tmp_path)
    shorten(tmp_path / f"{MODEL}.yaml")
    spec = find_spec(tmp_path, MODEL)
    assert RATE * spec.monitoring.window.total_seconds() >= spec.monitoring.min_rows
    assert WINDOWS_AFTER_CHANGE >= spec.monitoring.drift.of >= spec.monitoring.drift.breaches
    assert spec.monitoring.drift.breaches <= WINDOWS_BEFORE_CHANGE
    assert isinstance(spec.training.split, TimeSplit)
    assert RATE * spec.training.split.test.total_seconds() >= spec.gates.min_rows


def differences(before, after, path=""):
    """Yield each dotted key at which two nested dictionaries differ, with the values (before, after)."""
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", (old, new)
