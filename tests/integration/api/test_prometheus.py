"""The services' metrics for Prometheus. They cover all workers, and clients can't add series to them."""

import os
import re
import signal
from datetime import UTC, datetime

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from deploy.dashboards import queries
from tests.services import make_service, wait_for
from utils.version import ROOT

FITTED = datetime(2026, 9, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    service_process = make_service(
        settings, tmp_path_factory.mktemp("numbers"), "serve_numbers", workers=2, api_key=SecretStr("key")
    )
    service_process.deploy(7, service_process.store(7))
    with service_process.running():
        wait_for("both workers", lambda: [worker["version"] for worker in service_process.workers()] == [7, 7])
        yield service_process


def series(service):
    """Every value on the metrics page, by its name and labels."""
    families = text_string_to_metric_families(service.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def value(samples, name, **labels):
    """The sum of the values of `name` that have these labels."""
    wanted = {"service_name": "serve_numbers", **labels}.items()
    return sum(number for key, number in samples.items() if key[0] == name and wanted <= set(key[1:]))


def test_requests_are_counted_by_endpoint_outcome_and_reason(service):
    url = f"http://127.0.0.1:{service.port}"
    authorized = {"Authorization": "Bearer key"}
    samples_before = series(service)
    rows = [service.row] * 30
    for _ in range(20):  # enough for both workers to get some
        assert service.post("/predict", {"data": service.row}, key="key").status_code == 200
    prediction = service.post("/predict_batch", {"data": rows}, key="key").json()["predictions"][0]["prediction_id"]
    service.post("/predict", {"data": service.row})
    service.post("/predict", {"data": {**service.row, "age": -1}}, key="key")
    requests.post(f"{url}/predict", data=b"a=b", headers={**authorized, "Content-Type": "text/plain"}, timeout=9)
    requests.post(f"{url}/predict_batch", data=b"x" * 10_000_001, headers=authorized, timeout=9)
    service.post("/feedback", {"prediction_id": prediction, "actual": "Good"}, key="key")
    service.post("/feedback", {"prediction_id": prediction.replace("-7", "-8"), "actual": "Good"}, key="key")
    service.post("/metadata", {}, key="key")
    samples_after = series(service)
    expected = {
        ("/predict", "answered", ""): 20,
        ("/predict", "refused", "key"): 1,
        ("/predict", "refused", "invalid"): 1,
        ("/predict", "refused", "not json"): 1,
        ("/predict_batch", "answered", ""): 1,
        ("/predict_batch", "refused", "too large"): 1,
        ("/feedback", "answered", ""): 1,
        ("/feedback", "refused", "unknown prediction"): 1,
        ("/metadata", "answered", ""): 1,
    }

    def growth(name, **labels):
        return value(samples_after, name, **labels) - value(samples_before, name, **labels)

    for (endpoint, outcome, reason), number in expected.items():
        labels = {"endpoint": endpoint, "outcome": outcome, "reason": reason}
        assert growth("evergreen_requests_total", **labels) == number, labels
    assert growth("evergreen_requests_total") == sum(expected.values())
    assert growth("evergreen_batch_rows_sum") == 20 + len(rows)
    batches = growth("evergreen_batch_rows_count")
    assert 0 < batches <= 21
    for stage in ("queue", "score", "commit"):
        assert growth("evergreen_stage_seconds_count", stage=stage) == batches
        assert growth("evergreen_stage_seconds_sum", stage=stage) > 0


def test_the_page_shows_the_version_its_age_and_the_rows_of_the_spool(service):
    samples = series(service)
    assert value(samples, "evergreen_model_version") == 7
    deployed = service.bento_store.current().since.replace(tzinfo=UTC).timestamp()
    assert value(samples, "evergreen_model_deployed_timestamp_seconds") == pytest.approx(deployed, abs=1e-3)
    assert value(samples, "evergreen_model_fitted_timestamp_seconds") == pytest.approx(deployed, abs=1e-3)
    for name in ("rows", "oldest_seconds", "filled_ratio"):
        assert ("evergreen_spool_" + name, ("service_name", "serve_numbers")) in samples


def test_the_page_counts_spooled_rows_until_mariadb_has_stored_them(service, mariadb):
    os.kill(mariadb.pid, signal.SIGSTOP)
    try:
        for _ in range(8):
            assert service.post("/predict", {"data": service.row}, key="key").status_code == 200
        wait_for("the rows", lambda: value(series(service), "evergreen_spool_rows") == 8)
        wait_for("their age", lambda: value(series(service), "evergreen_spool_oldest_seconds") > 0)
        assert 0 < value(series(service), "evergreen_spool_filled_ratio") < 0.01
    finally:
        os.kill(mariadb.pid, signal.SIGCONT)
    wait_for("none to be left", lambda: value(series(service), "evergreen_spool_rows") == 0)
    wait_for("no age", lambda: value(series(service), "evergreen_spool_oldest_seconds") == 0)


def test_the_age_is_that_of_the_newest_label_if_the_version_has_it(service):
    sha256 = service.store(8)
    folder = service.settings.home / "serve_numbers-8-bundle"
    service.bento_store.put(8, folder, tags={"fitted_until": FITTED.replace(tzinfo=None).isoformat()})
    service.deploy(8, sha256)
    wait_for("version 8", lambda: value(series(service), "evergreen_model_version") == 8)
    assert value(series(service), "evergreen_model_fitted_timestamp_seconds") == FITTED.timestamp()


def test_no_request_of_a_client_creates_a_series(service):
    url = f"http://127.0.0.1:{service.port}"
    session = requests.Session()

    def odd(number):
        authorized = {"Authorization": "Bearer key", "Content-Type": "application/json"}
        name = f"odd-{number}"
        session.get(f"{url}/{name}", params={name: name}, timeout=9)
        session.get(f"{url}/predict/{name}", timeout=9)
        session.post(f"{url}/static_content/{name}", data=name, timeout=9)
        session.request(f"ODD{chr(65 + number % 26)}", f"{url}/predict", timeout=9)
        session.request("DELETE", f"{url}/livez", timeout=9)
        session.get(f"{url}/livez", headers={"Host": f"{name}.example"}, timeout=9)
        session.post(f"{url}/predict", json={name: name}, headers={**authorized, "Host": name}, timeout=9)
        session.post(f"{url}/predict", json={"data": service.row}, headers={"Authorization": name}, timeout=9)
        session.get(f"{url}/ws/{name}", headers={"Connection": "Upgrade", "Upgrade": "websocket"}, timeout=9)
        session.post(f"{url}/predict", data="{}", headers={**authorized, "Idempotency-Key": name}, timeout=9)

    for number in range(4):  # both workers get one of each kind
        odd(number)
    series_before = set(series(service))
    for number in range(100, 200):
        odd(number)
    assert set(series(service)) == series_before


def test_a_killed_worker_takes_its_gauges_with_it(service):
    pid = service.workers()[0]["pid"]
    assert list(service.settings.home.rglob(f"gauge_live*_{pid}.db"))
    os.kill(pid, signal.SIGKILL)
    wait_for("a worker in its place", lambda: not list(service.settings.home.rglob(f"gauge_live*_{pid}.db")))
    wait_for("its version", lambda: value(series(service), "evergreen_model_version") == 8)


def test_dashboards_and_alerts_use_only_metrics_that_are_on_the_page(service):
    names = {key[0] for key in series(service)}
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    queries_text = [query.promql for query in queries()]
    queries_text += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    used_names = {
        name for query_text in queries_text for name in re.findall(r"\b(?:evergreen|bentoml)_\w+", query_text)
    }
    assert len(used_names) > 10
    assert used_names <= names
