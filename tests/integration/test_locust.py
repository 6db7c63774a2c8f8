"""Locust's users against a real service: each of their requests is one that the service answers."""

import csv
import json
import os
import subprocess
import sys

import pytest

from db.admin import bootstrap
from tests.integration.api.scoring.test_predict_by_id import load
from tests.services import make_service
from utils.version import ROOT


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    made = make_service(settings, tmp_path_factory.mktemp("load"), "serve_load")
    bootstrap.migrate(settings, [made.spec.store])
    made.deploy(1, made.store(1))
    load(made, {f"c-{number}": {} for number in range(20)})
    with made.running():
        yield made


def locust(service, folder, *options):
    """What a short run of eight users printed, its exit code, and its requests by name."""
    argv = [sys.executable, "-m", "locust", "-f", str(ROOT / "tests" / "load" / "locustfile.py"), "--headless"]
    argv += ["--host", f"http://127.0.0.1:{service.port}", "-u", "8", "-r", "8", "-t", "4s", "--only-summary"]
    argv += ["--csv", str(folder / "load"), *options]
    ran = subprocess.run(argv, env={**os.environ, "EVERGREEN_API_KEY": ""}, capture_output=True, text=True)
    with (folder / "load_stats.csv").open() as file:
        return ran, {row["Name"]: row for row in csv.DictReader(file)}


def test_locusts_users_ask_what_the_service_answers_and_every_answer_is_in_the_log(service, tmp_path):
    ids = tmp_path / "ids"
    ids.write_text("\n".join(f"c-{number}" for number in range(20)))
    ran, asked = locust(service, tmp_path, "--max-p99", "5000", "--ids", ids)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert "kept: " in ran.stdout
    assert {"/predict", "/predict_by_id", "/predict_batch", "/feedback"} <= set(asked)
    assert all(row["Failure Count"] == "0" for row in asked.values())
    logged = service.logged().values()
    # A client that locust ends in the middle of a request has an answer in the log that it did not wait for.
    assert len(logged) >= int(asked["/predict"]["Request Count"]) + 10 * int(asked["/predict_batch"]["Request Count"])
    assert any(row["entity_id"].startswith("c-") for row in logged)
    warnings = {warning for row in logged for warning in json.loads(row["warnings"])}
    assert "missing: age" in warnings
    assert "unseen category: occupation" in warnings


def test_a_run_that_breaks_a_limit_fails_and_says_which(service, tmp_path):
    ran, _ = locust(service, tmp_path, "--max-p99", "0.001")
    assert ran.returncode == 1
    assert "BROKEN: " in ran.stdout
    assert "(at most 0.001)" in ran.stdout
