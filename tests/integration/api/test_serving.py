"""The prediction service from the view of its clients: real BentoML processes, real MariaDB."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import requests
from pydantic import SecretStr

from api.log.prediction_log import Breaker, PredictionLog
from api.log.spool import Spool
from db.driver import Client
from db.history.heartbeats import Heartbeat, beat, deployment_to_follow
from db.log.prediction_ids import created_at, new_id
from db.session import session
from db.tables import instance
from tests.services import make_service, wait_for
from utils.clock import utc_now
from utils.errors import NotLogged, NotNow

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    """Two workers that serve version 1, for tests that change nothing."""
    service_process = make_service(settings, tmp_path_factory.mktemp("serving"), "serve_main", workers=2)
    service_process.deploy(1, service_process.store(1))
    with service_process.running():
        yield service_process


def test_an_answer_is_in_the_log_with_the_same_values(service):
    answer = service.predict(age=None, occupation="Astronaut").json()
    row = service.logged()[answer["prediction_id"]]
    assert (row["model"], row["version"], row["role"]) == ("serve_main", 1, "champion")
    assert (row["entity_id"], row["prediction"]) == (answer["entity_id"], answer["prediction"])
    assert json.loads(row["features"]) == {
        name: value
        for name, value in {**service.row, "age": None, "occupation": "Astronaut"}.items()
        if name != "customer_id"
    }
    assert json.loads(row["probabilities"]) == answer["probabilities"]
    assert json.loads(row["warnings"]) == answer["warnings"] == ["missing: age", "unseen category: occupation"]
    assert answer["confidence"] == row["confidence"] == max(answer["probabilities"].values())
    assert answer["prediction"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert row["created_at"] == created_at(UUID(answer["prediction_id"]))
    assert timedelta(0) <= row["logged_at"] - row["created_at"] < timedelta(minutes=1)
    assert row["instance"] in {str(worker["instance_id"]) for worker in service.workers()}


def test_sixty_four_clients_at_once_each_get_their_own_logged_answer(service):
    def ask(number):
        answer = service.predict(customer_id=f"client-{number}", age=20 + number % 64)
        assert answer.status_code == 200
        return answer.json()

    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(ask, range(640)))
    assert [answer["entity_id"] for answer in answers] == [f"client-{number}" for number in range(640)]
    log_rows = service.logged()
    for number, answer in enumerate(answers):
        row = log_rows[answer["prediction_id"]]
        assert (row["entity_id"], row["prediction"]) == (answer["entity_id"], answer["prediction"])
        assert json.loads(row["features"])["age"] == 20 + number % 64


def test_clients_with_open_connections_are_shared_among_the_workers(service):
    wait_for("both workers", lambda: [worker["version"] for worker in service.workers()] == [1, 1])
    with ExitStack() as sessions:
        clients = [sessions.enter_context(requests.Session()) for _ in range(16)]
        url, body = f"http://127.0.0.1:{service.port}/predict", {"data": service.row}
        ids = [client.post(url, json=body, timeout=20).json()["prediction_id"] for client in clients]
    log_rows = service.logged()
    shares = Counter(log_rows[prediction_id]["instance"] for prediction_id in ids)
    assert len(shares) == 2
    assert min(shares.values()) >= 5  # the kernel alternates between the workers that wait


def test_a_repeated_request_gets_the_same_answer_and_is_logged_once(service):
    key = {"Idempotency-Key": f"{time.time():.3f}-{uuid4().hex}"}
    body = {"data": [{**service.row, "customer_id": f"again-{number % 2}"} for number in range(4)]}
    first, second = (service.post("/predict_batch", body, headers=key).json()["predictions"] for _ in range(2))
    assert first == second
    ids = [answer["prediction_id"] for answer in first]
    assert len(set(ids)) == 4  # equal rows of one request are still logged separately
    assert sum(row["entity_id"].startswith("again-") for row in service.logged().values()) == 4
    assert {str(created_at(UUID(prediction_id)))[:19] for prediction_id in ids} == {
        str(service.logged()[ids[0]]["created_at"])[:19]
    }


def test_another_request_with_the_same_key_is_answered_and_logged(service):
    key = {"Idempotency-Key": f"{time.time():.3f}-{uuid4().hex}"}
    answers = [
        service.post("/predict", {"data": {**service.row, "customer_id": f"other-{number}"}}, headers=key).json()
        for number in range(2)
    ]
    log_rows = service.logged()
    assert [log_rows[answer["prediction_id"]]["entity_id"] for answer in answers] == ["other-0", "other-1"]


def test_the_error_for_an_invalid_idempotency_key_shows_the_format(service):
    response = service.post("/predict", {"data": service.row}, headers={"Idempotency-Key": "mine"})
    assert response.status_code == 400
    assert "SECONDS-NAME" in response.json()["error"]


def test_reasons_are_only_in_the_answer_to_a_request_with_explain(service):
    without_reasons = service.predict().json()
    assert "reasons" not in without_reasons
    with_reasons = service.post("/predict", {"data": service.row, "explain": True}).json()
    reasons = with_reasons.pop("reasons")
    assert with_reasons.keys() == without_reasons.keys()
    assert with_reasons["probabilities"] == without_reasons["probabilities"]
    assert 0 < len(reasons) <= 5
    assert all(reason["value"] == service.row[reason["feature"]] for reason in reasons)
    log_rows = service.logged()
    plain_row, row = (log_rows[answer["prediction_id"]] for answer in (without_reasons, with_reasons))
    assert {name for name in row if row[name] != plain_row[name]} <= {
        "prediction_id",
        "latency_ms",
        "instance",
        "created_at",
        "logged_at",
    }
    rows = [{**service.row, "age": age} for age in (20, 60)]
    batch = service.post("/predict_batch", {"data": rows, "explain": True}).json()["predictions"]
    assert [len(answer["reasons"]) > 0 for answer in batch] == [True, True]
    response = service.post("/predict", {"data": service.row, "explain": "yes"})
    assert response.status_code == 400
    assert response.json()["detail"][0]["field"] == "explain"


def test_a_batch_is_answered_in_order_and_all_its_rows_are_logged(service):
    rows = [{**service.row, "customer_id": i, "age": 20 + i % 90} for i in range(1000)]
    answers = service.post("/predict_batch", {"data": rows}).json()["predictions"]
    assert [answer["entity_id"] for answer in answers] == [str(i) for i in range(1000)]
    assert {answer["prediction_id"] for answer in answers} <= service.logged().keys()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"data": {"customer_id": "a", "age": 300}}, "age"),
        ({"data": {"customer_id": "a", "credit_mix": "good"}}, "credit_mix"),
        ({"data": {"age": 30}}, "customer_id"),
        ({"data": {"customer_id": "a", "ssn": "123-45-6789"}}, "(unknown key)"),
        ({"rows": []}, "data"),
    ],
)
def test_wrong_input_is_a_400_that_names_the_field_and_is_counted(service, body, field):
    def refusals():
        rows = service.query(
            "SELECT SUM(requests) AS n FROM request_reject WHERE model = :model AND field = :f", f=field
        )
        return int(rows[0]["n"] or 0)

    refusals_before = refusals()
    answer = service.post("/predict", body)
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["field"] == field
    wait_for("the refusal to be counted", lambda: refusals() == refusals_before + 1)


def test_refusals_leave_no_traceback_and_no_value_in_the_servers_log(service):
    service.predict(age="SECRET-VALUE")
    service.post("/predict", {"data": {"customer_id": "a", "SECRET-VALUE": 1}})
    requests.post(f"http://127.0.0.1:{service.port}/predict", data=b"SECRET-VALUE", headers=JSON, timeout=9)
    log = service.log.read_text()
    assert "SECRET-VALUE" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b'{"data": {"customer_id": "a", "age": NaN}}', JSON, 400),
        (b'{"data": {"customer_id": "a", "monthly_balance": 1e400}}', JSON, 400),
        (b"x" * 10_000_001, JSON, 413),
        (iter([b"x" * 6_000_000] * 2), JSON, 413),  # chunked, without a length
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_a_malformed_body_is_refused(service, content, headers, status):
    answer = requests.post(f"http://127.0.0.1:{service.port}/predict", data=content, headers=headers, timeout=9)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_unknown_paths_and_methods_are_refused_and_create_no_metrics(service):
    assert service.get("/predict").status_code == 405
    assert service.get("/no-such-path").status_code == 404
    assert "no-such-path" not in service.get("/metrics").text


def test_feedback_is_accepted_for_a_logged_prediction_only(service):
    prediction_id = service.predict().json()["prediction_id"]
    assert service.post("/feedback", {"prediction_id": prediction_id, "actual": "Good"}).json() == {"recorded": True}
    for_unknown_id = service.post("/feedback", {"prediction_id": str(new_id(utc_now())), "actual": "Good"})
    assert for_unknown_id.status_code == 404
    for_wrong_class = service.post("/feedback", {"prediction_id": prediction_id, "actual": "Excellent"})
    assert for_wrong_class.status_code == 400
    assert for_wrong_class.json()["detail"][0]["field"] == "actual"
    rows = service.query("SELECT actual, prediction_id FROM prediction_feedback WHERE model = :model")
    assert [(row["actual"], str(row["prediction_id"])) for row in rows] == [("Good", prediction_id)]


def test_feedback_on_a_prediction_that_may_be_in_a_spool_is_answered_with_retry_after(service):
    other_worker, now = uuid4(), utc_now()
    worker = Heartbeat(other_worker, service.spec.name, "elsewhere", 1, "", now, 1, now, None, None, spool_rows=3)
    feedback = {"prediction_id": str(new_id(now)), "actual": "Good"}
    client = Client(service.settings)
    try:
        client.run(lambda link: beat(link, worker))
        response = service.post("/feedback", feedback)
    finally:
        with session(service.settings, "admin") as connection:
            connection.execute(instance.delete().where(instance.c.instance_id == other_worker))
        client.close()
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert service.post("/feedback", feedback).status_code == 404


def test_metadata_names_the_serving_version_and_its_origin(service):
    metadata = service.post("/metadata", {}).json()
    assert (metadata["model"], metadata["version"], metadata["run_id"]) == ("serve_main", 1, "run-1")
    assert metadata["spec_hash"] == service.spec.hash
    assert metadata["sha256"] == service.bento_store.current().sha256
    assert requests.post(f"http://127.0.0.1:{service.port}/metadata", timeout=9).json()["version"] == 1


def test_the_page_shows_the_exact_request_and_an_example_that_works(service):
    document = service.get("/docs.json").json()
    row = document["components"]["schemas"]["Row"]
    assert row["properties"]["age"]["unit"] == "years"
    assert row["properties"]["credit_mix"]["anyOf"][0]["enum"] == ["Good", "Standard", "Bad"]
    schemas = document["components"]["schemas"]
    assert schemas["Predict"]["properties"]["explain"]["default"] is False
    assert set(schemas["Reason"]["properties"]) == {"feature", "value", "contribution"}
    for path in ("/predict", "/predict_batch"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        example_body = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["example"]
        answer = service.post(path, example_body)
        assert answer.status_code == 200
    assert answer.json()["predictions"][0]["warnings"] == []
    assert service.get("/").status_code == 200


def test_a_row_that_the_log_refuses_fails_only_its_own_request(settings, tmp_path):
    def row(prediction):
        prediction_id = new_id(utc_now())
        middle = ("bisect", 1, "champion", "e", "{}", prediction, 0.5, "{}", "[]", 1.0, str(new_id(utc_now())))
        return (str(prediction_id), *middle, created_at(prediction_id), utc_now())

    breaker = Breaker()
    log = PredictionLog(settings, spool=Spool(tmp_path, "bisect"), breaker=breaker)
    outcomes = log.write([[row("x" * 999 if i in {7, 40} else "fine")] for i in range(64)])
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, NotLogged)] == [7, 40]
    same_rows = [row("fine")]
    assert log.write([same_rows]) == log.write([same_rows]) == [None]  # writing the same rows again changes nothing
    assert not breaker.is_open
    log.close()


def test_a_service_with_a_wrong_password_gets_the_error_for_a_missing_mariadb(settings):
    client = Client(settings.model_copy(update={"db_api_password": SecretStr("wrong")}))
    with pytest.raises(NotNow):
        client.run(lambda link: deployment_to_follow(link, "any"))


def test_before_the_first_model_the_service_is_alive_but_not_ready_and_later_serves_without_a_restart(
    settings, tmp_path
):
    service = make_service(settings, tmp_path, "serve_first")
    with service.running(until="/livez"):
        assert service.get("/readyz").status_code == 503
        response = service.predict()
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert "no trained model" in response.json()["error"]
        assert service.post("/metadata", {}).status_code == 503
        service.deploy(1, service.store(1))
        wait_for("the first version", service.is_ready)
        assert service.predict().json()["version"] == 1


def test_a_service_with_a_key_requires_it(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_key", api_key=SecretStr("right-key"))
    service.deploy(1, service.store(1))
    with service.running():
        body = {"data": service.row}
        for key in ("", "wrong-key"):
            response = service.post("/predict", body, key=key)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
        assert service.post("/predict", body, key="right-key").status_code == 200
        for path in ("/livez", "/readyz", "/metrics", "/docs.json", "/"):
            assert service.get(path).status_code == 200
        document = service.get("/docs.json").json()
        assert document["paths"]["/predict"]["post"]["security"] == [{"key": []}]
