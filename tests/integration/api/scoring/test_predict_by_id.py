"""Predictions by entity id. The service looks up the features in the store: real processes, real MariaDB."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pandas as pd
import pytest
import yaml

from api.requests.row_type import example
from api.requests.schemas import BATCH_ROWS
from db.admin import bootstrap
from db.store import appending
from db.store.schema import TIMELESS
from pipelines.maintenance.forget import forget
from pipelines.spec import find_spec
from tests.servers import free_port
from tests.services import Service, make_service, own_mariadb, wait_for
from utils.clock import utc_now
from utils.version import ROOT

DAY = timedelta(days=1)


def load(service, rows, *, days_old=1.0):
    """Append feature rows {entity: values} to the store. Missing values come from the spec's example row."""
    now, spec = utc_now(), service.spec
    event_time = now - days_old * DAY if spec.timed else TIMELESS
    typical = {name: value for name, value in example(spec).items() if name != spec.entity}
    frame = pd.DataFrame(
        [{"entity_id": entity, "event_time": event_time, **typical, **row} for entity, row in rows.items()]
    )
    numbers = spec.columns_of("numeric")
    appending.append(
        service.settings,
        spec.store,
        features=frame.astype(dict.fromkeys(numbers, "float64")),
        labels=None,
        source="test",
        content_sha256="0" * 64,
        caused_by="test",
        now=now,
        available_at_given=False,
    )


def ask(service, *ids, **options):
    return service.post("/predict_by_id", {"ids": list(ids), **options})


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    service_process = make_service(settings, tmp_path_factory.mktemp("by_id"), "by_id", workers=2)
    bootstrap.migrate(settings, [service_process.spec.store])
    service_process.deploy(1, service_process.store(1))
    load(service_process, {f"c-{number}": {"age": 20.0 + number} for number in range(64)})
    with service_process.running():
        yield service_process


def test_answers_have_the_order_of_the_ids_and_are_scored_on_the_stored_features(service):
    ids = ["c-7", "c-3", "c-63", "c-7"]
    answer = ask(service, *ids)
    assert answer.status_code == 200
    answers = answer.json()["predictions"]
    assert [prediction["entity_id"] for prediction in answers] == ids
    log_rows = service.logged()
    for prediction in answers:
        age = 20.0 + int(prediction["entity_id"][2:])
        same = service.predict(customer_id=prediction["entity_id"], age=age).json()
        assert prediction["probabilities"] == same["probabilities"]
        # The warning is for the occupation of the example row.
        assert prediction["warnings"] == same["warnings"] == ["unseen category: occupation"]
        row = log_rows[prediction["prediction_id"]]
        expected = {name: value for name, value in service.row.items() if name != "customer_id"}
        assert json.loads(row["features"]) == expected | {"age": age}
    assert len({prediction["prediction_id"] for prediction in answers}) == len(ids)


def test_sixty_four_clients_at_once_each_get_their_own_entities(service):
    def ask_two(number):
        ids = [f"c-{number % 64}", f"c-{(number + 1) % 64}"]
        return ids, ask(service, *ids).json()["predictions"]

    with ThreadPoolExecutor(64) as clients:
        results = list(clients.map(ask_two, range(320)))
    log_rows = service.logged()
    for ids, answers in results:
        assert [answer["entity_id"] for answer in answers] == ids
        for answer in answers:
            features = json.loads(log_rows[answer["prediction_id"]]["features"])
            assert features["age"] == 20.0 + int(answer["entity_id"][2:])


def test_the_error_names_all_unknown_ids_and_no_id_is_scored(service):
    rows_before = len(service.logged())
    response = ask(service, "c-1", "no'body", "c-2", "C-1")
    assert response.status_code == 404
    content = response.json()
    assert "\"no'body\", 'C-1'" in content["error"]
    assert [(problem["row"], problem["field"], problem["reason"]) for problem in content["detail"]] == [
        (1, "ids", "unknown_entity"),
        (3, "ids", "unknown_entity"),
    ]
    assert len(service.logged()) == rows_before
    assert "no'body" not in service.log.read_text()


def test_newer_features_are_used_from_the_next_request_on(service):
    load(service, {"changes": {"age": 30.0}}, days_old=2)
    first = ask(service, "changes").json()["predictions"][0]
    load(service, {"changes": {"age": 70.0}})
    second = ask(service, "changes").json()["predictions"][0]
    log_rows = service.logged()
    ages = [json.loads(log_rows[prediction["prediction_id"]]["features"])["age"] for prediction in (first, second)]
    assert ages == [30.0, 70.0]


def test_features_older_than_max_age_count_as_missing_like_in_training(service):
    assert service.spec.features.max_age == 90 * DAY
    load(service, {"old": {}}, days_old=90.01)
    load(service, {"nearly-old": {}}, days_old=89.99)
    nearly, old = ask(service, "nearly-old", "old").json()["predictions"]
    assert nearly["warnings"] == ["unseen category: occupation"]
    assert old["warnings"] == ["stored features too old, or not valid yet"] + [
        f"missing: {name}" for name in service.spec.features.columns
    ]
    empty = service.post("/predict", {"data": {"customer_id": "old"}}).json()
    assert old["probabilities"] == empty["probabilities"]
    assert set(json.loads(service.logged()[old["prediction_id"]]["features"]).values()) == {None}


def test_features_with_a_future_event_time_count_as_missing(service):
    load(service, {"early": {}}, days_old=-1)
    (answer,) = ask(service, "early").json()["predictions"]
    assert answer["warnings"][0] == "stored features too old, or not valid yet"


def test_a_stored_value_that_requests_may_not_have_counts_as_missing_with_a_warning(service):
    load(service, {"odd": {"age": 300.0, "credit_mix": "Excellent", "type_of_loan": None, "occupation": "Astronaut"}})
    (answer,) = ask(service, "odd").json()["predictions"]
    assert answer["warnings"] == [
        "unfit in the store: age",
        "unfit in the store: credit_mix",
        "missing: age",
        "missing: credit_mix",
        "unseen category: occupation",
        "missing: type_of_loan",
    ]
    same = service.predict(age=None, credit_mix=None, type_of_loan=None, occupation="Astronaut").json()
    assert answer["probabilities"] == same["probabilities"]
    assert json.loads(service.logged()[answer["prediction_id"]]["warnings"]) == answer["warnings"]


def test_a_forgotten_entity_is_unknown(service):
    load(service, {"leaves": {}, "stays": {}})
    assert ask(service, "leaves", "stays").status_code == 200
    forget(service.settings, spec=service.spec, entity_id="leaves", caused_by="test", now=utc_now())
    response = ask(service, "leaves", "stays")
    assert response.status_code == 404
    assert [problem["row"] for problem in response.json()["detail"]] == [0]
    assert ask(service, "stays").status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "ids"),
        ({"ids": []}, "ids"),
        ({"ids": "c-1"}, "ids"),
        ({"ids": [None]}, "ids"),
        ({"ids": [""]}, "ids"),
        ({"ids": ["x" * 65]}, "ids"),
        ({"ids": ["c-1"] * (BATCH_ROWS + 1)}, "ids"),
        ({"ids": ["c-1"], "data": []}, "(unknown key)"),
        ({"ids": ["c-1"], "explain": 1}, "explain"),
    ],
)
def test_wrong_requests_are_a_400_that_names_the_field(service, body, field):
    response = service.post("/predict_by_id", body)
    assert response.status_code == 400
    assert response.json()["detail"][0]["field"] == field


def test_the_greatest_allowed_batch_is_answered_and_reasons_come_on_request(service):
    answers = ask(service, *[f"c-{number % 64}" for number in range(BATCH_ROWS)]).json()["predictions"]
    assert len(answers) == BATCH_ROWS
    assert "reasons" not in answers[0]
    (prediction,) = ask(service, "c-5", explain=True).json()["predictions"]
    assert prediction["reasons"]
    assert ask(service, 12345).json()["detail"][0]["message"] == "'12345' is not in the store"  # like in /predict


def test_the_docs_page_describes_predict_by_id(service):
    document = service.get("/docs.json").json()
    post = document["paths"]["/predict_by_id"]["post"]
    content = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][content.rpartition("/")[2]]
    assert schema["properties"]["ids"]["maxItems"] == BATCH_ROWS
    assert ask(service, *schema["example"]["ids"]).status_code in {200, 404}
    assert "404" in post["responses"]


def test_features_without_time_are_looked_up_too(settings, tmp_path):
    file = yaml.safe_load((ROOT / "models" / "churn.yaml").read_text()) | {"name": "by_id_timeless"}
    (tmp_path / "by_id_timeless.yaml").write_text(yaml.safe_dump(file))
    own_settings = settings.model_copy(update={"home": tmp_path, "models_dir": tmp_path, "serving_workers": 1})
    service = Service(own_settings, find_spec(tmp_path, "by_id_timeless"), free_port(), tmp_path / "log")
    assert not service.spec.timed
    bootstrap.migrate(settings, [service.spec.store])
    service.deploy(1, service.store(1))
    load(service, {"a": {}})
    with service.running():
        (answer,) = ask(service, "a").json()["predictions"]
        same = service.predict().json()
        assert (answer["probabilities"], answer["warnings"]) == (same["probabilities"], same["warnings"])
        assert ask(service, "b").status_code == 404


def test_without_mariadb_the_error_names_the_store_and_answers_return_with_it(credit_score, tmp_path):
    with own_mariadb([credit_score.store]) as server:
        service = make_service(server.settings, tmp_path, "by_id_away")
        bootstrap.migrate(server.settings, [service.spec.store])
        service.deploy(1, service.store(1))
        load(service, {"a": {}})
        with service.running():
            assert ask(service, "a").status_code == 200
            server.stop()
            response = ask(service, "a")
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) > 0
            assert "feature store can't be reached" in response.json()["error"]
            server.start()
            wait_for("an answer", lambda: ask(service, "a").status_code == 200)


def test_a_store_that_was_not_migrated_is_a_503_that_names_the_store(settings, tmp_path):
    service = make_service(settings, tmp_path, "by_id_bare")
    service.deploy(1, service.store(1))
    with service.running():
        response = ask(service, "a")
        assert response.status_code == 503
        assert "feature store can't be reached" in response.json()["error"]
        assert service.predict().status_code == 200
