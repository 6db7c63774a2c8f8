"""Malformed requests: a list of known ones, and ones that a generator derives from the OpenAPI document.

No request may cause a 5xx, block a worker, or leave a traceback. Every refusal names the problem and its field.
"""

import json
import socket
import sys
import unicodedata
from contextlib import suppress

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks

from db.admin import bootstrap
from tests.services import make_service

JSON = {"Content-Type": "application/json"}
EXAMPLES = 100  # generated requests, of each endpoint
ENDPOINTS = ("/predict", "/predict_batch", "/predict_by_id", "/feedback", "/metadata")


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    """A service with one worker. If a request blocks it, the next request fails."""
    service_process = make_service(settings, tmp_path_factory.mktemp("malformed"), "serve_malformed")
    bootstrap.migrate(service_process.settings, [service_process.spec.store])  # for /predict_by_id
    service_process.deploy(1, service_process.store(1))
    with service_process.running():
        yield service_process


@pytest.fixture(autouse=True)
def healthy_afterwards(service):
    """Check that the same worker answers the next request and that the log has no traceback."""
    [worker] = service.workers()
    yield
    assert service.predict().status_code == 200
    assert [each["pid"] for each in service.workers()] == [worker["pid"]]
    assert "Traceback" not in service.log.read_text()


def send(service, content, path="/predict", headers=JSON):
    return requests.post(f"http://127.0.0.1:{service.port}{path}", data=content, headers=headers, timeout=20)


def send_bytes(service, request):
    """Send the bytes. Return status and text of the answer, or (0, "") if the connection closes without an answer."""
    received = b""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection, suppress(ConnectionError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65_536):
            received += piece
    if not received:
        return 0, ""
    head, _, content = received.decode("latin-1").partition("\r\n\r\n")
    return int(head.split()[1]), content


def row(service, **values):
    return {**service.row, **values}


def as_json(value):
    """The value as JSON. A string like "@1e400@" becomes the bare text between its two signs."""
    return json.dumps(value).replace('"@', "").replace('@"', "")


# --- values of a field ---------------------------------------------------------------------------------------------

NUMBERS = {
    "NaN": "@NaN@", "infinity": "@Infinity@", "minus infinity": "@-Infinity@", "1e400": "@1e400@",
    "-1e400": "@-1e400@", "a string": "30", "true": True, "a list": [30], "an object": {"value": 30}, "empty": "",
    "below": -1, "above": 1e308, "a huge integer": "@" + "9" * 400 + "@", "a hugest integer": "@" + "9" * 5000 + "@",
    "nested": [[[[30]]]],
}  # fmt: skip
IDS = {
    "null": None, "empty": "", "400 digits": "@" + "7" * 400 + "@", "5000 digits": "@" + "7" * 5000 + "@",
    "a fraction": 1.5, "true": True, "a list": ["a"], "an object": {"id": "a"}, "too long": "x" * 10_000,
    "NaN": "@NaN@",
}  # fmt: skip
CATEGORIES = {"a number": 1, "true": False, "empty": "", "a list": [], "an object": {}, "too long": "x" * 100_000}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field} {name}")
        for field, values in (("age", NUMBERS), ("customer_id", IDS), ("occupation", CATEGORIES))
        for name, value in values.items()
    ],
)
def test_a_wrong_value_is_a_400_that_names_its_field(service, field, value):
    answer = send(service, as_json({"data": row(service, **{field: value})}))
    assert answer.status_code == 400
    assert {problem["field"] for problem in answer.json()["detail"]} <= {field, "(body)"}
    batch = send(service, as_json({"data": [service.row, row(service, **{field: value})]}), "/predict_batch")
    assert batch.status_code == 400
    (problem,) = batch.json()["detail"]
    assert problem["field"] in {field, "(body)"}
    assert problem["field"] == "(body)" or problem["row"] == 1
    # The answer does not repeat the value.
    assert str(value)[:40] not in answer.text.replace("(body)", "") or len(str(value)) < 8


def test_a_number_at_the_limits_of_a_double_is_answered(service):
    for number in ("1e308", "-1e308", "4.9e-324", "-0.0", "123456789012345678901234567890", "0.1e1", "1E5"):
        answer = send(service, as_json({"data": row(service, monthly_balance=f"@{number}@")}))
        assert answer.status_code in {200, 400}, number
        assert "monthly_balance" in answer.text or answer.status_code == 200


# --- unicode -------------------------------------------------------------------------------------------------------


def samples():
    """One character of each Unicode category except surrogates, and texts that often cause errors."""
    characters: dict[str, str] = {}
    for code in range(sys.maxunicode + 1):
        characters.setdefault(unicodedata.category(chr(code)), chr(code))
    del characters["Cs"]
    troubles = {
        "NUL": "a\0b",
        "BOM": "\ufeff",
        "right to left": "\u202e",
        "not a character": "\uffff",
        "last": "\U0010ffff",
    }
    return {**characters, **troubles, "combining": "e" + "\u0301" * 40, "emoji": "👩‍👩‍👧‍👦", "quote": "'\";--\\"}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in samples().items()])
def test_any_character_is_answered_and_logged_unchanged(service, text):
    answer = service.predict(customer_id=f"c{text}", occupation=f"o{text}", type_of_loan=f"l{text}")
    assert answer.status_code == 200
    assert answer.json()["entity_id"] == f"c{text}"
    [log_row] = service.query(
        "SELECT entity_id, features FROM prediction_log WHERE prediction_id = :id", id=answer.json()["prediction_id"]
    )
    features = json.loads(log_row["features"])
    assert (log_row["entity_id"], features["occupation"], features["type_of_loan"]) == (
        f"c{text}",
        f"o{text}",
        f"l{text}",
    )


@pytest.mark.parametrize("escape", [r"\ud800", r"\udfff", r"\udc00\ud800", r"\ud800x"])
@pytest.mark.parametrize("place", ["value", "key"])
def test_half_a_surrogate_pair_is_refused(service, escape, place):
    content = json.dumps(
        {"data": row(service, occupation="@")} if place == "value" else {"data": row(service, **{"@": 1})}
    )
    answer = send(service, content.replace("@", escape))
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["field"] == "(body)"


# --- bodies that are not a request -----------------------------------------------------------------------------------

BROKEN = {
    "nothing": b"", "a blank": b" ", "null": b"null", "true": b"true", "a number": b"1", "a string": b'"data"',
    "an array": b"[]", "data null": b'{"data": null}', "data an array": b'{"data": []}',
    "data a string": b'{"data": "x"}', "data in data": b'{"data": {"data": {}}}', "cut": b'{"data": {"age"',
    "two values": b"{}{}",
    "a comma": b'{"data": {},}', "single quotes": b"{'data': {}}", "a comment": b'{"data": {} /* x */}',
    "deep arrays": b"[" * 200_000,
    "deep objects": b'{"data":' * 50_000, "deep and closed": b'{"data":' * 5_000 + b"1" + b"}" * 5_000,
    "a NUL": b"\0", "NULs": b"\0" * 1000, "a NUL in it": b'{"data": \0}', "a raw newline": b'{"da\nta": {}}',
    "UTF-16": '{"data": {}}'.encode("utf-16"), "UTF-32": '{"data": {}}'.encode("utf-32"),
    "Latin-1": '{"data": {"customer_id": "Jörg"}}'.encode("latin-1"), "BOM": b'\xef\xbb\xbf{"data": {}}',
    "broken UTF-8": b'{"data": {"customer_id": "\xc3\x28"}}',
    "overlong UTF-8": b'{"data": {"customer_id": "\xc0\xaf"}}',
    "a surrogate in UTF-8": b'{"data": {"customer_id": "\xed\xa0\x80"}}', "gzip": b"\x1f\x8b\x08\x00\x00",
    "XML": b"<data/>", "YAML": b"data:\n  age: 3", "form": b"data=1", "many keys": b'{"data": {' + b",".join(
        b'"k%d": 1' % i for i in range(50_000)) + b"}}",
    "__proto__": b'{"data": {"__proto__": {"age": 1}, "constructor": 1}}',
    "an unknown key": b'{"data": {}, "admin": true}',
    "a key of the program": b'{"data": {"f0": 1, "entity": "a", "model_fields": 1, "__class__": 1}}',
    "an empty key": b'{"": {}}', "a long key": b'{"' + b"x" * 100_000 + b'": 1}',
}  # fmt: skip


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in BROKEN.items()])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_body_that_is_not_a_request_is_a_400_that_names_the_field(service, path, content):
    answer = send(service, content, path)
    if path == "/metadata" and content == b"":
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    problem_report = answer.json()
    assert problem_report["error"]
    assert all(problem["field"] and problem["message"] for problem in problem_report["detail"])
    assert 1 <= len(problem_report["detail"]) <= 20
    assert len(answer.content) < 20_000


def test_null_is_answered_where_a_value_may_be_missing_and_elsewhere_refused_by_field(service):
    nulls = dict.fromkeys(service.row)
    response = send(service, json.dumps({"data": nulls}))
    assert response.status_code == 400
    assert [problem["field"] for problem in response.json()["detail"]] == ["customer_id"]
    answer = send(service, json.dumps({"data": {**nulls, "customer_id": "c"}}))
    assert answer.status_code == 200
    assert len(answer.json()["warnings"]) == len(nulls) - 1
    for path, body in (
        ("/predict_batch", {"data": [None, nulls]}),
        ("/feedback", {"prediction_id": None, "actual": None}),
        ("/predict", {"data": service.row, "explain": None}),
    ):
        response = send(service, json.dumps(body), path)
        assert response.status_code == 400
        assert {problem["field"] for problem in response.json()["detail"]} <= {
            "data",
            "customer_id",
            "prediction_id",
            "actual",
            "explain",
        }


def test_the_last_value_of_a_repeated_key_is_scored_and_logged(service):
    content = json.dumps({"data": row(service, age=20)})[:-2] + ', "age": 70}}'
    answer = send(service, content)
    assert answer.status_code == 200
    assert json.loads(service.logged()[answer.json()["prediction_id"]]["features"])["age"] == 70


HUGE = "@" + "9" * 5000 + "@"


@pytest.mark.parametrize(
    "actual",
    ["@1e400@", "@NaN@", HUGE, "", "x" * 100_000, [], {}, None, True, 1, "good", "Good\0"],
    ids=lambda actual: repr(actual)[:20],
)
def test_wrong_feedback_is_a_400_that_names_its_field(service, actual):
    prediction_id = service.predict().json()["prediction_id"]
    answer = send(service, as_json({"prediction_id": prediction_id, "actual": actual}), "/feedback")
    assert answer.status_code == 400
    assert {problem["field"] for problem in answer.json()["detail"]} <= {"actual", "(body)"}


@pytest.mark.parametrize("wrong", ["", "x", 1, "0" * 36, HUGE, "{}", [], "\0" * 36], ids=lambda wrong: repr(wrong)[:20])
def test_an_invalid_prediction_id_is_a_400_that_names_the_field(service, wrong):
    answer = send(service, as_json({"prediction_id": wrong, "actual": "Good"}), "/feedback")
    assert answer.status_code == 400
    assert {problem["field"] for problem in answer.json()["detail"]} <= {"prediction_id", "(body)"}


# --- headers and bytes around a body ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "multipart/form-data"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/vnd.bentoml+pickle"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "application/jsonx"}, 415),
        ({"Content-Type": b"application/json\xff"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 200),
        ({"Content-Type": "APPLICATION/JSON ;x"}, 200),
        ({}, 200),
        ({"Content-Encoding": "gzip", **JSON}, 415),
        ({"Content-Encoding": "identity", **JSON}, 200),
        ({"Idempotency-Key": "", **JSON}, 400),
        ({"Idempotency-Key": "9" * 30 + "-x", **JSON}, 400),
        ({"Idempotency-Key": "1e9-x", **JSON}, 400),
        ({"Idempotency-Key": b"\xff\xfe", **JSON}, 400),
        ({"Authorization": "Bearer x", **JSON}, 200),
        ({"Bentoml-Is-Task": "1", "X-BentoML-Name": "x", "Host": "nobody", **JSON}, 200),
        ({"Expect": "100-continue", **JSON}, 200),
        ({"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "x", **JSON}, 200),
        ({f"X-{number}": "x" * 100 for number in range(90)} | JSON, 200),
    ],
    ids=repr,
)
def test_unusual_headers_are_accepted_or_refused_with_a_reason(service, headers, status):
    answer = send(service, json.dumps({"data": service.row}), headers=headers)
    assert answer.status_code == status
    assert status == 200 or len(answer.json()["error"]) > 20


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n{}",
        b"POST \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /%00%ff%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /static_content/../../app.py HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /predict HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /predict HTTP/1.0\r\n\r\n",
        b"GET /predict HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"TRACE /predict HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /predict HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=repr,
)
def test_bytes_that_are_hardly_http_are_refused_or_the_connection_closes(service, request_bytes):
    status, content = send_bytes(service, request_bytes)
    assert status == 0 or 400 <= status < 500
    if content:
        assert json.loads(content)["error"]


def test_pipelined_requests_are_answered_in_order(service):
    body = json.dumps({"data": service.row}).encode()
    good = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    wrong = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{"
    last = good.replace(b"Host: x", b"Host: x\r\nConnection: close")
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(good + wrong + good + wrong + last)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400", b"200", b"400", b"200"]


# --- requests that are generated from the OpenAPI document ------------------------------------------------------------

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.positive_data_acceptance,
    checks.negative_data_rejection,
]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_answers_to_generated_requests_conform_to_the_document(service, mode):
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{service.port}/docs.json")
    operations = [result.ok() for result in document.get_all_operations()]
    assert set(ENDPOINTS) < {operation.path for operation in operations}
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True)
        def check(case):
            case.call_and_validate(checks=CHECKS)

        if mode is GenerationMode.POSITIVE or operation.path in ENDPOINTS:
            check()
