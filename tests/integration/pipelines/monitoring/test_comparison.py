"""Comparison of a challenger in the shadow with the champion, from the rows of both in the log."""

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


def shadow_since(settings, model, since, version=2):
    with session(settings, "pipeline") as connection:
        row = {"model": model, "version": version, "artifact_sha256": "0" * 64, "caused_by": "test"}
        history.add(connection, shadow, {**row, "created_at": since})


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


def log_pairs(settings, model, predictions, *, start):
    """Log pairs of predictions from `start` on, two a millisecond, three an entity. Return the champions' ids.

    predictions: the champion's prediction (version 1), the challenger's (version 2) and the features, for each pair.
    The challenger's is None if it did not score the row.
    """
    rows, ids = [], []
    for number, (champion_prediction, challenger_prediction, features) in enumerate(predictions):
        ids.append(new_id(start + timedelta(milliseconds=number // 2)))
        shared = {"entity": f"e{number // 3}", "features": features}
        rows.append(
            log_row(model, ids[-1], role="champion", version=1, prediction=champion_prediction, latency=2.0, **shared)
        )
        if challenger_prediction is not None:
            challenger_id = shadow_id(ids[-1], 2)
            rows.append(
                log_row(
                    model,
                    challenger_id,
                    role="shadow",
                    version=2,
                    prediction=challenger_prediction,
                    latency=0.5,
                    **shared,
                )
            )
    client = Client(settings)
    client.run(lambda link: insert(link, rows))
    client.close()
    return ids


@pytest.fixture
def spec(settings, tmp_path):
    new_spec = spec_like_credit_score("compare_classes", tmp_path)
    bootstrap.migrate(settings, [new_spec.store])
    yield new_spec
    with session(settings, "admin") as connection:
        connection.execute(text("DELETE FROM prediction_log WHERE model LIKE 'compare%'"))
        connection.execute(text("DELETE FROM shadow WHERE model LIKE 'compare%'"))


def test_agreement_slices_latency_and_quality_are_computed_over_the_pairs(settings, spec, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 70)  # the pairs of one millisecond fall into two chunks
    start = utc_now() - timedelta(minutes=5)
    shadow_since(settings, spec.name, start)
    # The two differ in 60 of 300 rows, all with credit_mix Bad. The champion is right in 10 of these 60.
    predictions = [
        ("Poor", "Good" if number < 60 else "Poor", {"credit_mix": "Bad" if number < 100 else "Standard"})
        for number in range(300)
    ]
    ids = log_pairs(settings, spec.name, [*predictions, *[("Poor", None, {})] * 20], start=start)
    client = Client(settings)
    for number, prediction_id in enumerate(ids[:300]):
        actual = "Good" if 10 <= number < 60 else "Poor"
        client.run(partial(add_feedback, prediction_id=prediction_id, model=spec.name, actual=actual))
    now = utc_now()
    comparison = compare_versions(settings, spec, now=now)
    assert (comparison.version, comparison.answered, comparison.pairs) == (2, {1: 320}, 300)
    assert comparison.agreement == pytest.approx(240 / 300)
    assert comparison.changes == [{"champion": "Poor", "challenger": "Good", "rows": 60}]
    by_level = {each.level: (each.rows, each.apart) for each in comparison.slices if each.column == "credit_mix"}
    assert by_level == {"Bad": (100, 0.6), "Standard": (200, 0.0)}
    assert {side: each["p50"] for side, each in comparison.latency_ms.items()} == {"champion": 2.0, "challenger": 0.5}
    assert comparison.difference is None
    quality = comparison.judged
    assert quality is not None
    assert quality.better_by is not None
    assert (quality.labels, quality.metric) == (300, spec.watched_metric)
    assert quality.challenger > quality.champion
    assert quality.better_by.value == pytest.approx(quality.challenger - quality.champion)
    assert 0 < quality.better_by.low < quality.better_by.value < quality.better_by.high
    assert compare_versions(settings, spec, since=start + timedelta(milliseconds=100), now=utc_now()).pairs == 100
    with pytest.raises(NotFound, match="shadow of version 7"):
        compare_versions(settings, spec, version=7, now=utc_now())
    # Counts cover all pairs, whatever the size of the sample.
    monkeypatch.setattr(comparing, "SAMPLE", 100)
    sampled = compare_versions(settings, spec, now=now)
    assert replace(sampled, judged=None) == replace(comparison, judged=None)
    assert sampled.judged is not None
    assert sampled.judged.labels == 100


def test_numeric_predictions_are_compared_by_their_difference(settings, spec):
    file = yaml.safe_load((spec_file := settings.models_dir / "insurance.yaml").read_text())
    insurance = ModelSpec.parse({**file, "name": "compare_numbers"}, file=spec_file.name)
    bootstrap.migrate(settings, [insurance.store])
    start = utc_now() - timedelta(minutes=5)
    shadow_since(settings, insurance.name, start)
    offsets = [float(number % 100) - 20 for number in range(200)]
    log_pairs(settings, insurance.name, [(1000.0, 1000.0 + offset, {}) for offset in offsets], start=start)
    comparison = compare_versions(settings, insurance, now=utc_now())
    assert (comparison.agreement, comparison.judged, comparison.changes) == (None, None, [])
    assert comparison.difference is not None
    assert comparison.difference["mean"] == pytest.approx(np.mean(offsets))
    assert comparison.difference["mean_absolute"] == pytest.approx(np.mean(np.abs(offsets)))
    assert comparison.difference["max"] == 79.0


def test_the_command_prints_the_comparison_as_a_table_and_as_json(settings, spec, tmp_path):
    run = partial(evergreen, environment=environment_of(settings, tmp_path))
    failed = run("compare", spec.name)
    assert failed.returncode == NotFound.exit_code
    assert "evergreen shadow compare_classes VERSION begins one" in failed.stderr.replace("\n", " ")
    assert "no version is in the shadow" in run("shadow", spec.name).stdout
    shadow_since(settings, spec.name, utc_now() - timedelta(minutes=5))
    log_pairs(
        settings, spec.name, [("Poor", "Good", {"credit_mix": "Bad"})] * 60, start=utc_now() - timedelta(minutes=4)
    )
    table = run("compare", spec.name)
    assert table.returncode == 0, table.stderr
    for words in (
        "60 answered by version 1 (60); 60 (100.0%) scored along",
        "the same class in 0.00%",
        "Bad",
        "p99",
        "too few of them have a known truth",
    ):
        assert words in table.stdout
    report = json.loads(run("compare", spec.name, "--json").stdout)
    assert (report["pairs"], report["agreement"], report["answered"]) == (60, 0.0, {"1": 60})
    assert json.loads(run("shadow", spec.name, "--json").stdout)["version"] == 2
    stop = run("shadow", spec.name, "--stop")
    assert "version 2 is in the shadow no more" in stop.stdout, stop.stderr
