"""What a challenger in the shadow said beside what was answered: the log's rows put together again."""

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import uuid4

import numpy as np
import pytest
import yaml
from sqlalchemy import text

from db import history
from db.admin import bootstrap
from db.driver import Client
from db.log import reading
from db.log.prediction_ids import created_at, new_id, shadow_id
from db.log.writing import add_feedback, insert
from db.session import session
from db.tables import shadow
from pipelines.monitoring import comparison as comparing
from pipelines.monitoring.comparison import compare_versions
from pipelines.spec import ModelSpec
from tests.commands import evergreen
from tests.integration.conftest import environment_of
from tests.services import spec_like_credit_score
from utils.clock import utc_now
from utils.errors import NotFound

CLASSES = ("Poor", "Standard", "Good")


def shadow_since(settings, model, when, version=2):
    with session(settings, "pipeline") as connection:
        row = {"model": model, "version": version, "artifact_sha256": "0" * 64, "caused_by": "test"}
        history.add(connection, shadow, {**row, "created_at": when})


def log_row(model, prediction_id, *, role, version, entity, prediction, features, latency):
    probabilities = {name: 0.8 if name == prediction else 0.1 for name in CLASSES}
    numeric = isinstance(prediction, float)
    return (
        str(prediction_id),
        model,
        version,
        role,
        entity,
        json.dumps(features),
        str(prediction),
        None if numeric else 0.8,
        None if numeric else json.dumps(probabilities),
        "[]",
        latency,
        str(uuid4()),
        created_at(prediction_id),
        utc_now(),
    )


def log_pairs(settings, model, said, *, start):
    """`said`: for each prediction what the champion, 1, and the challenger, 2, said (None: it did not score it), and
    the features. Returns the champions' ids; one prediction a millisecond from `start` on, three entities a value."""
    rows, ids = [], []
    for number, (one, other, features) in enumerate(said):
        ids.append(new_id(start + timedelta(milliseconds=number // 2)))
        shared = {"entity": f"e{number // 3}", "features": features}
        rows.append(log_row(model, ids[-1], role="champion", version=1, prediction=one, latency=2.0, **shared))
        if other is not None:
            mine = shadow_id(ids[-1], 2)
            rows.append(log_row(model, mine, role="shadow", version=2, prediction=other, latency=0.5, **shared))
    client = Client(settings)
    client.run(lambda link: insert(link, rows))
    client.close()
    return ids


@pytest.fixture
def spec(settings, tmp_path):
    made = spec_like_credit_score("compare_classes", tmp_path)
    bootstrap.migrate(settings, [made.store])
    yield made
    with session(settings, "admin") as connection:
        connection.execute(text("DELETE FROM prediction_log WHERE model LIKE 'compare%'"))
        connection.execute(text("DELETE FROM shadow WHERE model LIKE 'compare%'"))


def test_agreement_slices_latency_and_who_was_right_are_counted_over_the_pairs(settings, spec, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 70)  # pairs of a millisecond lie in two chunks
    start = utc_now() - timedelta(minutes=5)
    shadow_since(settings, spec.name, start)
    # Of 300, 60 differ, all of them where credit_mix is Bad; the champion is right about 10 of those.
    said = [
        ("Poor", "Good" if number < 60 else "Poor", {"credit_mix": "Bad" if number < 100 else "Standard"})
        for number in range(300)
    ]
    ids = log_pairs(settings, spec.name, [*said, *[("Poor", None, {})] * 20], start=start)
    client = Client(settings)
    for number, each in enumerate(ids[:300]):
        actual = "Good" if 10 <= number < 60 else "Poor"
        client.run(partial(add_feedback, prediction_id=each, model=spec.name, actual=actual))
    now = utc_now()
    found = compare_versions(settings, spec, now=now)
    assert (found.version, found.answered, found.pairs) == (2, {1: 320}, 300)
    assert found.agreement == pytest.approx(240 / 300)
    assert found.changes == [{"champion": "Poor", "challenger": "Good", "rows": 60}]
    by_level = {each.level: (each.rows, each.apart) for each in found.slices if each.column == "credit_mix"}
    assert by_level == {"Bad": (100, 0.6), "Standard": (200, 0.0)}
    assert {side: each["p50"] for side, each in found.latency_ms.items()} == {"champion": 2.0, "challenger": 0.5}
    assert found.difference is None
    judged = found.judged
    assert judged is not None
    assert judged.better_by is not None
    assert (judged.labels, judged.metric) == (300, spec.watched_metric)
    assert judged.challenger > judged.champion
    assert judged.better_by.value == pytest.approx(judged.challenger - judged.champion)
    assert 0 < judged.better_by.low < judged.better_by.value < judged.better_by.high
    assert compare_versions(settings, spec, since=start + timedelta(milliseconds=100), now=utc_now()).pairs == 100
    with pytest.raises(NotFound, match="shadow of version 7"):
        compare_versions(settings, spec, version=7, now=utc_now())
    # Counts are of all pairs, whatever the size of the sample that is drawn from them.
    monkeypatch.setattr(comparing, "SAMPLE", 100)
    sampled = compare_versions(settings, spec, now=now)
    assert replace(sampled, judged=None) == replace(found, judged=None)
    assert sampled.judged is not None
    assert sampled.judged.labels == 100


def test_numbers_are_compared_by_how_far_they_are_apart(settings, spec):
    file = yaml.safe_load((spec_file := settings.models_dir / "insurance.yaml").read_text())
    insurance = ModelSpec.parse({**file, "name": "compare_numbers"}, file=spec_file.name)
    bootstrap.migrate(settings, [insurance.store])
    start = utc_now() - timedelta(minutes=5)
    shadow_since(settings, insurance.name, start)
    offsets = [float(number % 100) - 20 for number in range(200)]
    log_pairs(settings, insurance.name, [(1000.0, 1000.0 + each, {}) for each in offsets], start=start)
    found = compare_versions(settings, insurance, now=utc_now())
    assert (found.agreement, found.judged, found.changes) == (None, None, [])
    assert found.difference is not None
    assert found.difference["mean"] == pytest.approx(np.mean(offsets))
    assert found.difference["mean_absolute"] == pytest.approx(np.mean(np.abs(offsets)))
    assert found.difference["max"] == 79.0


def test_the_command_shows_it_to_people_and_machines(settings, spec, tmp_path):
    run = partial(evergreen, environment=environment_of(settings, tmp_path))
    nothing = run("compare", spec.name)
    assert nothing.returncode == NotFound.exit_code
    assert "evergreen shadow compare_classes VERSION begins one" in nothing.stderr.replace("\n", " ")
    assert "no version is in the shadow" in run("shadow", spec.name).stdout
    shadow_since(settings, spec.name, utc_now() - timedelta(minutes=5))
    log_pairs(
        settings, spec.name, [("Poor", "Good", {"credit_mix": "Bad"})] * 60, start=utc_now() - timedelta(minutes=4)
    )
    shown = run("compare", spec.name)
    assert shown.returncode == 0, shown.stderr
    for words in (
        "60 answered by version 1 (60); 60 (100.0%) scored along",
        "the same class in 0.00%",
        "Bad",
        "p99",
        "too few of them have a known truth",
    ):
        assert words in shown.stdout
    told = json.loads(run("compare", spec.name, "--json").stdout)
    assert (told["pairs"], told["agreement"], told["answered"]) == (60, 0.0, {"1": 60})
    assert json.loads(run("shadow", spec.name, "--json").stdout)["version"] == 2
    stopped = run("shadow", spec.name, "--stop")
    assert "version 2 is in the shadow no more" in stopped.stdout, stopped.stderr
