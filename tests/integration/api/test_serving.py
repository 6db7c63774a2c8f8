"""The prediction service as its clients meet it: real BentoML processes, real MariaDB."""

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
    """Two workers that serve version 1, for the tests that change nothing."""
    made = make_service(settings, tmp_path_factory.mktemp("serving"), "serve_main", workers=2)
    made.deploy(1, made.store(1))
    with made.running():
        yield made


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
    logged = service.logged()
    for number, answer in enumerate(answers):
        row = logged[answer["prediction_id"]]
        assert (row["entity_id"], row["prediction"]) == (answer["entity_id"], answer["prediction"])
        assert json.loads(row["features"])["age"] == 20 + number % 64


def test_clients_that_keep_their_connections_are_shared_among_the_workers(service):
    wait_for("both workers", lambda: [worker["version"] for worker in service.workers()] == [1, 1])
    with ExitStack() as opened:
        clients = [opened.enter_context(requests.Session()) for _ in range(16)]
        url, body = f"http://127.0.0.1:{service.port}/predict", {"data": service.row}
        ids = [client.post(url, json=body, timeout=20).json()["prediction_id"] for client in clients]
    logged = service.logged()
    shares = Counter(logged[each]["instance"] for each in ids)
    assert len(shares) == 2
    assert min(shares.values()) >= 5  # the kernel takes them in turn, unless one of them is not waiting again yet


def test_a_request_that_is_sent_again_is_answered_as_before_and_logged_once(service):
    key = {"Idempotency-Key": f"{time.time():.3f}-{uuid4().hex}"}
    body = {"data": [{**service.row, "customer_id": f"again-{place % 2}"} for place in range(4)]}
    first, again = (service.post("/predict_batch", body, headers=key).json()["predictions"] for _ in range(2))
    assert first == again
    ids = [answer["prediction_id"] for answer in first]
    assert len(set(ids)) == 4  # equal rows of a request are still rows of their own
    assert sum(row["entity_id"].startswith("again-") for row in service.logged().values()) == 4
    assert {str(created_at(UUID(each)))[:19] for each in ids} == {str(service.logged()[ids[0]]["created_at"])[:19]}


def test_a_key_of_another_request_hides_nothing(service):
    key = {"Idempotency-Key": f"{time.time():.3f}-{uuid4().hex}"}
    answers = [
        service.post("/predict", {"data": {**service.row, "customer_id": f"other-{number}"}}, headers=key).json()
        for number in range(2)
    ]
    logged = service.logged()
    assert [logged[answer["prediction_id"]]["entity_id"] for answer in answers] == ["other-0", "other-1"]


def test_a_key_that_is_none_is_refused_with_what_it_should_be(service):
    refused = service.post("/predict", {"data": service.row}, headers={"Idempotency-Key": "mine"})
    assert refused.status_code == 400
    assert "SECONDS-NAME" in refused.json()["error"]


def test_reasons_are_in_the_answer_that_asks_for_them_and_nowhere_else(service):
    plain = service.predict().json()
    assert "reasons" not in plain
    explained = service.post("/predict", {"data": service.row, "explain": True}).json()
    reasons = explained.pop("reasons")
    assert explained.keys() == plain.keys()
    assert explained["probabilities"] == plain["probabilities"]
    assert 0 < len(reasons) <= 5
    assert all(reason["value"] == service.row[reason["feature"]] for reason in reasons)
    logged = service.logged()
    before, row = (logged[answer["prediction_id"]] for answer in (plain, explained))
    assert {name for name in row if row[name] != before[name]} <= {
        "prediction_id",
        "latency_ms",
        "instance",
        "created_at",
        "logged_at",
    }
    rows = [{**service.row, "age": age} for age in (20, 60)]
    batch = service.post("/predict_batch", {"data": rows, "explain": True}).json()["predictions"]
    assert [len(answer["reasons"]) > 0 for answer in batch] == [True, True]
    refused = service.post("/predict", {"data": service.row, "explain": "yes"})
    assert refused.status_code == 400
    assert refused.json()["detail"][0]["field"] == "explain"


def test_a_batch_is_answered_in_its_order_and_logged_whole(service):
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
    def counted():
        rows = service.query(
            "SELECT SUM(requests) AS n FROM request_reject WHERE model = :model AND field = :f", f=field
        )
        return int(rows[0]["n"] or 0)

    before = counted()
    answer = service.post("/predict", body)
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["field"] == field
    wait_for("the refusal to be counted", lambda: counted() == before + 1)


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
        (iter([b"x" * 6_000_000] * 2), JSON, 413),  # chunked: no length to go by
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_a_body_that_is_no_request_is_refused(service, content, headers, status):
    answer = requests.post(f"http://127.0.0.1:{service.port}/predict", data=content, headers=headers, timeout=9)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_unknown_paths_and_methods_are_refused_and_make_no_metrics(service):
    assert service.get("/predict").status_code == 405
    assert service.get("/no-such-path").status_code == 404
    assert "no-such-path" not in service.get("/metrics").text


def test_feedback_is_taken_for_a_logged_prediction_only(service):
    known = service.predict().json()["prediction_id"]
    assert service.post("/feedback", {"prediction_id": known, "actual": "Good"}).json() == {"recorded": True}
    unknown = service.post("/feedback", {"prediction_id": str(new_id(utc_now())), "actual": "Good"})
    assert unknown.status_code == 404
    wrong = service.post("/feedback", {"prediction_id": known, "actual": "Excellent"})
    assert wrong.status_code == 400
    assert wrong.json()["detail"][0]["field"] == "actual"
    rows = service.query("SELECT actual, prediction_id FROM prediction_feedback WHERE model = :model")
    assert [(row["actual"], str(row["prediction_id"])) for row in rows] == [("Good", known)]


def test_feedback_on_what_may_still_be_in_a_spool_is_asked_for_again(service):
    other, now = uuid4(), utc_now()
    worker = Heartbeat(other, service.spec.name, "elsewhere", 1, "", now, 1, now, None, None, spool_rows=3)
    report = {"prediction_id": str(new_id(now)), "actual": "Good"}
    client = Client(service.settings)
    try:
        client.run(lambda link: beat(link, worker))
        later = service.post("/feedback", report)
    finally:
        with session(service.settings, "admin") as connection:
            connection.execute(instance.delete().where(instance.c.instance_id == other))
        client.close()
    assert (later.status_code, later.headers["Retry-After"]) == (503, "5")
    assert service.post("/feedback", report).status_code == 404


def test_metadata_says_which_version_serves_and_where_it_came_from(service):
    told = service.post("/metadata", {}).json()
    assert (told["model"], told["version"], told["run_id"]) == ("serve_main", 1, "run-1")
    assert told["spec_hash"] == service.spec.hash
    assert told["sha256"] == service.bento_store.current().sha256
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
        shown = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["example"]
        answer = service.post(path, shown)
        assert answer.status_code == 200
    assert answer.json()["predictions"][0]["warnings"] == []
    assert service.get("/").status_code == 200


def test_a_row_that_the_log_refuses_fails_its_own_request_alone(settings, tmp_path):
    def row(prediction):
        made = new_id(utc_now())
        middle = ("bisect", 1, "champion", "e", "{}", prediction, 0.5, "{}", "[]", 1.0, str(new_id(utc_now())))
        return (str(made), *middle, created_at(made), utc_now())

    breaker = Breaker()
    log = PredictionLog(settings, spool=Spool(tmp_path, "bisect"), breaker=breaker)
    outcomes = log.write([[row("x" * 999 if i in {7, 40} else "fine")] for i in range(64)])
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, NotLogged)] == [7, 40]
    again = [row("fine")]
    assert log.write([again]) == log.write([again]) == [None]  # the same rows once more change nothing
    assert not breaker.is_open
    log.close()


def test_a_service_with_a_wrong_password_is_told_that_mariadb_is_away(settings):
    client = Client(settings.model_copy(update={"db_api_password": SecretStr("wrong")}))
    with pytest.raises(NotNow):
        client.run(lambda link: deployment_to_follow(link, "any"))


def test_before_the_first_model_it_is_alive_but_not_ready_and_then_serves_without_a_restart(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_first")
    with service.running(until="/livez"):
        assert service.get("/readyz").status_code == 503
        early = service.predict()
        assert early.status_code == 503
        assert int(early.headers["Retry-After"]) > 0
        assert "no trained model" in early.json()["error"]
        assert service.post("/metadata", {}).status_code == 503
        service.deploy(1, service.store(1))
        wait_for("the first version", service.is_ready)
        assert service.predict().json()["version"] == 1


def test_a_key_is_asked_for_where_one_is_set(settings, tmp_path):
    service = make_service(settings, tmp_path, "serve_key", api_key=SecretStr("right-key"))
    service.deploy(1, service.store(1))
    with service.running():
        body = {"data": service.row}
        for key in ("", "wrong-key"):
            refused = service.post("/predict", body, key=key)
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert service.post("/predict", body, key="right-key").status_code == 200
        for path in ("/livez", "/readyz", "/metrics", "/docs.json", "/"):
            assert service.get(path).status_code == 200
        document = service.get("/docs.json").json()
        assert document["paths"]["/predict"]["post"]["security"] == [{"key": []}]
