"""Locust's users against a real service: each of their requests is one that the service answers."""

import csv
import os
import subprocess
import sys

from tests.services import make_service
from utils.version import ROOT


def test_locusts_users_ask_what_the_service_answers_and_every_answer_is_in_the_log(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_load")
    service.deploy(1, service.store(1))
    with service.running():
        url = f"http://127.0.0.1:{service.port}"
        locust = [sys.executable, "-m", "locust", "-f", ROOT / "benchmarks" / "locustfile.py", "--headless"]
        locust += ["--host", url, "-u", "8", "-r", "8", "-t", "4s", "--csv", tmp_path / "load", "--only-summary"]
        ran = subprocess.run(locust, env={**os.environ, "EVERGREEN_API_KEY": ""}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    with (tmp_path / "load_stats.csv").open() as file:
        asked = {row["Name"]: row for row in csv.DictReader(file)}
    assert {"/predict", "/predict_batch", "/feedback"} <= set(asked)
    assert all(row["Failure Count"] == "0" for row in asked.values())
    batches = int(asked["/predict_batch"]["Request Count"])
    # A client that locust ends in the middle of a request has an answer in the log that it did not wait for.
    assert len(service.logged()) >= int(asked["/predict"]["Request Count"]) + 50 * batches
