"""Locust's users against a real service. The service answers every kind of request that they send."""

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
    service_process = make_service(settings, tmp_path_factory.mktemp("load"), "serve_load")
    bootstrap.migrate(settings, [service_process.spec.store])
    service_process.deploy(1, service_process.store(1))
    load(service_process, {f"c-{number}": {} for number in range(20)})
    with service_process.running():
        yield service_process


def locust(service, folder, *options):
    """Run eight users for a short time. Return the finished process and Locust's statistics by request name."""
    argv = [sys.executable, "-m", "locust", "-f", str(ROOT / "tests" / "load" / "locustfile.py"), "--headless"]
    argv += ["--host", f"http://127.0.0.1:{service.port}", "-u", "8", "-r", "8", "-t", "4s", "--only-summary"]
    argv += ["--csv", str(folder / "load"), *options]
    process = subprocess.run(argv, env={**os.environ, "EVERGREEN_API_KEY": ""}, capture_output=True, text=True)
    with (folder / "load_stats.csv").open() as file:
        return process, {row["Name"]: row for row in csv.DictReader(file)}


def test_the_service_answers_all_requests_of_locust_and_logs_every_answer(service, tmp_path):
    ids = tmp_path / "ids"
    ids.write_text("\n".join(f"c-{number}" for number in range(20)))
    process, statistics = locust(service, tmp_path, "--max-p99", "5000", "--ids", ids)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    assert "kept: " in process.stdout
    assert {"/predict", "/predict_by_id", "/predict_batch", "/feedback"} <= set(statistics)
    assert all(row["Failure Count"] == "0" for row in statistics.values())
    log_rows = service.logged().values()
    # Locust stops its clients in the middle of a request. The log also holds the answers that they did not wait for.
    assert len(log_rows) >= int(statistics["/predict"]["Request Count"]) + 10 * int(
        statistics["/predict_batch"]["Request Count"]
    )
    assert any(row["entity_id"].startswith("c-") for row in log_rows)
    warnings = {warning for row in log_rows for warning in json.loads(row["warnings"])}
    assert "missing: age" in warnings
    assert "unseen category: occupation" in warnings


def test_a_run_that_breaks_a_limit_fails_and_names_the_limit(service, tmp_path):
    process, _ = locust(service, tmp_path, "--max-p99", "0.001")
    assert process.returncode == 1
    assert "BROKEN: " in process.stdout
    assert "(at most 0.001)" in process.stdout
