"""Keys of a running service change without a restart. No file that it writes has a key or a value of a request."""

import json
import os

import pytest
import requests
from pydantic import SecretStr

from stack.programs.program import settings_environment
from tests.commands import evergreen
from tests.integration.test_canaries import files
from tests.services import make_service, wait_for

CANARY = "CANARY-b31c90"
OWN_KEY = f"{CANARY}-own-key"


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    service_process = make_service(
        settings, tmp_path_factory.mktemp("keys"), "serve_keys", workers=2, api_key=SecretStr(OWN_KEY)
    )
    service_process.deploy(1, service_process.store(1))
    with service_process.running():
        yield service_process


def keys(service, *arguments):
    """The JSON output of `evergreen keys …`."""
    environment = {**os.environ, **settings_environment(service.settings, secrets=())}
    process = evergreen("keys", *arguments, "--json", environment=environment)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def statuses(service, key):
    """The status codes of 20 requests, each on its own connection, so that both workers get some."""
    return {service.post("/predict", {"data": service.row}, key=key).status_code for _ in range(20)}


def test_keys_are_exchanged_without_a_restart_and_without_a_refused_request(service):
    wait_for("both workers", lambda: [worker["version"] for worker in service.workers()] == [1, 1])
    pids_before = {worker["pid"] for worker in service.workers()}
    first = keys(service, "add", "shop")["key"]
    wait_for("the first key", lambda: statuses(service, first) == {200})
    second = keys(service, "add", "shop")["key"]
    wait_for("the second key", lambda: statuses(service, second) == {200})
    assert statuses(service, first) == {200}
    assert keys(service, "remove", "shop", "--older") == {"name": "shop", "removed": 1}
    wait_for("the first key to go", lambda: statuses(service, first) == {401})
    assert statuses(service, second) == statuses(service, OWN_KEY) == {200}
    listing = keys(service, "list")
    assert [each["name"] for each in listing] == ["shop"]
    assert second not in json.dumps(listing)
    keys(service, "remove", "shop")
    wait_for("the second key to go", lambda: statuses(service, second) == {401})
    assert {worker["pid"] for worker in service.workers()} == pids_before


def test_a_service_without_keys_requires_one_once_a_key_exists(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_first_key")
    service.deploy(1, service.store(1))
    with service.running():
        assert statuses(service, "") == {200}
        assert "security" not in service.get("/docs.json").json()["paths"]["/predict"]["post"]
        key = keys(service, "add", "shop")["key"]
        wait_for("requests without a key to be refused", lambda: statuses(service, "") == {401})
        assert statuses(service, key) == {200}
        assert service.get("/docs.json").json()["paths"]["/predict"]["post"]["security"] == [{"key": []}]
        assert service.get("/readyz").status_code == 200


def test_no_secret_and_no_value_is_in_any_file_of_the_service(service):
    key = keys(service, "add", f"{CANARY.lower()}-name-is-shown")["key"]
    url, row = f"http://127.0.0.1:{service.port}", service.row
    good = {"Authorization": f"Bearer {OWN_KEY}", "Content-Type": "application/json"}
    wait_for("the key", lambda: statuses(service, key) == {200})
    bad_requests: list[tuple[dict[str, str], str | bytes]] = [
        ({**good, "Authorization": f"Bearer {CANARY}-wrong"}, json.dumps({"data": row})),
        ({**good, "Authorization": f"Basic {CANARY}"}, json.dumps({"data": row})),
        (good, json.dumps({"data": {**row, "customer_id": f"{CANARY}-entity", "occupation": f"{CANARY}-job"}})),
        (good, json.dumps({"data": {**row, "age": f"{CANARY}-age"}})),
        (good, json.dumps({"data": {**row, "credit_mix": CANARY}})),
        (good, json.dumps({"data": [CANARY]})),
        (good, f'{{"data": {CANARY}'),
        (good, f"\ufeff{CANARY}".encode("utf-16")),
        ({**good, "Content-Type": f"text/{CANARY}"}, CANARY),
        ({**good, "Idempotency-Key": CANARY}, json.dumps({"data": row})),
        ({**good, f"X-{CANARY}": CANARY, "Cookie": f"session={CANARY}", "User-Agent": CANARY}, "{"),
        ({**good, "Upgrade": "websocket", "Connection": "Upgrade", "X-Canary": CANARY}, "{}"),
        ({**good, "Content-Length": CANARY}, "{}"),
    ]
    for headers, body in bad_requests:
        requests.post(f"{url}/predict?{CANARY}={CANARY}", data=body, headers=headers, timeout=20)
        requests.post(f"{url}/predict_batch/{CANARY}", data=body, headers=headers, timeout=20)
    requests.get(f"{url}/{CANARY}", params={CANARY: CANARY}, headers=good, timeout=20)
    requests.request(CANARY, f"{url}/predict", timeout=20)
    contents = list(files(service.settings.home))
    assert any(path == service.log for path, _ in contents)
    assert [str(path) for path, content in contents if CANARY in content or key in content] == []
    assert "Traceback" not in service.log.read_text()
