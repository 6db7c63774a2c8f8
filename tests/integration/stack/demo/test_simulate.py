"""Simulations with a real prediction service and a real store."""

import json
from datetime import timedelta
from uuid import UUID, uuid4

import pandas as pd
import pytest

from db.admin import bootstrap
from db.log.prediction_ids import created_at
from db.store.loads import latest_commit_seq
from db.store.point_in_time import training_frame
from pipelines.spec import find_spec
from stack.demo.late_labels import LateLabels
from stack.demo.simulate import SimulatedPeople, simulate
from stack.demo.traffic import Answer, RetryingTraffic
from stack.example_data.scenario_names import Scenario
from tests.servers import free_port
from tests.services import make_service
from utils.clock import utc_now
from utils.errors import StackError, Unreachable

NO_DELAY = timedelta(0)


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    """A service of the model credit_score, because scenarios are defined by the name of the model."""
    service_process = make_service(settings, tmp_path_factory.mktemp("simulated"), "credit_score")
    service_process.deploy(1, service_process.store(1))
    with service_process.running():
        yield service_process


def run(service, scenario, *, requests=60, rate=300.0, labels_after=NO_DELAY, **options):
    return simulate(
        service.settings,
        service.spec,
        scenario=Scenario(scenario),
        requests=requests,
        rate=rate,
        labels_after=labels_after,
        url=f"http://127.0.0.1:{service.port}",
        **options,
    )


def log_rows(service, seed):
    """Entity → row of the prediction log, for the people of the simulation with `seed`."""
    return {row["entity_id"]: row for row in service.logged().values() if row["entity_id"].startswith(f"sim-{seed:x}-")}


def store_rows(service, seed):
    """The rows that a training would read of the people of the simulation with `seed`, indexed by entity."""
    now = utc_now()
    seq = latest_commit_seq(service.settings, "credit_score")
    bounds = {"start": now - timedelta(hours=1), "until": now, "window_end": now, "commit_seq": seq}
    rows = training_frame(service.settings, service.spec.store, **bounds)
    return rows[rows["entity_id"].str.startswith(f"sim-{seed:x}-")].set_index("entity_id")


def test_each_request_is_in_the_log_and_with_its_label_and_the_same_time_in_the_store(service):
    report = run(service, "none", seed=101)
    assert (report.answered, report.refused, report.changed) == (60, 0, 0)
    assert (report.feature_rows, report.label_rows, report.labels_waiting) == (60, 60, 0)
    assert report.versions == {1: 60}
    logged, stored = log_rows(service, 101), store_rows(service, 101)
    assert len(logged) == len(stored) == 60
    for entity, row in logged.items():
        store_row = stored.loc[entity]
        assert store_row["event_time"] == created_at(UUID(str(row["prediction_id"]))) == row["created_at"]
        assert store_row["credit_score"] in service.spec.label.classes
        for name, value in json.loads(row["features"]).items():
            assert value == store_row[name] if value is not None else pd.isna(store_row[name]), name


def test_a_scenario_begins_at_the_given_time(service):
    report = run(service, "broken", seed=102)
    assert report.changed == 60
    rows = log_rows(service, 102).values()
    assert all("missing: monthly_inhand_salary" in json.loads(row["warnings"]) for row in rows)
    incomes = store_rows(service, 102)["annual_income"]
    assert incomes.max() < 1_000  # the store gets the same wrong values
    assert run(service, "broken", seed=105, since=utc_now() + timedelta(days=1)).changed == 0


def test_late_labels_are_kept_in_a_file_and_a_later_simulation_loads_those_that_are_due(service):
    report = run(service, "none", seed=103, labels_after=timedelta(days=1))
    assert (report.feature_rows, report.label_rows, report.labels_waiting) == (60, 0, 60)
    assert report.labels_due > utc_now() + timedelta(hours=23)
    assert store_rows(service, 103).empty
    assert run(service, "none", requests=0).labels_waiting == 60
    (waiting_file,) = (service.settings.home / "simulated" / "credit_score").iterdir()
    rows = pd.read_parquet(waiting_file)
    rows.loc[:19, "due"] = pd.Timestamp(utc_now())
    rows.to_parquet(waiting_file)
    second_report = run(service, "none", requests=0)
    assert (second_report.feature_rows, second_report.label_rows, second_report.labels_waiting) == (0, 20, 40)
    assert len(store_rows(service, 103)) == 20
    (remaining_file,) = (service.settings.home / "simulated" / "credit_score").iterdir()
    remaining_file.unlink()


def test_rows_of_a_model_without_time_are_loaded_too(settings):
    spec = find_spec(settings.models_dir, "churn")
    bootstrap.migrate(settings, [spec.store])
    people = SimulatedPeople(spec, scenario=Scenario.BROKEN, since=None, count=20, seed=201)
    bodies = [people.body(number)["data"] for number in range(20)]
    answers = [Answer(number, uuid4(), utc_now(), "stays", 1) for number in range(20)]
    late = LateLabels(settings, spec, delay=NO_DELAY, source="test", name="churn")
    late.load(people.features(answers), people.labels(answers))
    late.close()
    assert (late.feature_rows, late.label_rows, len(late.waiting)) == (20, 20, 0)
    now, seq = utc_now(), latest_commit_seq(settings, "churn")
    rows = training_frame(settings, spec.store, start=None, until=now, window_end=now, commit_seq=seq)
    by_entity = rows.set_index("entity_id").loc[[body["customer_id"] for body in bodies]]
    assert list(by_entity["monthly_fee"]) == [body["monthly_fee"] for body in bodies]
    assert by_entity["hours_a_week"].isna().all()
    assert set(by_entity["outcome"]) == {"stays", "leaves"}


def test_no_request_is_sent_before_its_time(service):
    start, rate = utc_now(), 50.0
    with RetryingTraffic(
        f"http://127.0.0.1:{service.port}", key="", body=lambda _: {"data": service.row}, count=30, rate=rate
    ) as traffic:
        while not traffic.is_over(within=1):
            pass
    assert sorted(answer.number for answer in traffic.answers) == list(range(30))
    for answer in traffic.answers:
        assert answer.at - start >= timedelta(seconds=answer.number / rate - 0.01)


def test_a_rejected_row_is_counted_and_the_other_requests_are_sent(service):
    def body(number):
        return {"data": {**service.row, "age": 300 if number == 3 else 30}}

    with RetryingTraffic(f"http://127.0.0.1:{service.port}", key="", body=body, count=10, rate=500) as traffic:
        while not traffic.is_over(within=1):
            pass
    assert (len(traffic.answers), len(traffic.refusals)) == (9, 1)
    assert "age" in traffic.refusals[0]


def test_a_missing_or_wrong_service_is_reported_without_retries(service):
    with pytest.raises(Unreachable, match="prediction service of credit_score"):
        simulate(
            service.settings,
            service.spec,
            scenario=Scenario.NONE,
            requests=1,
            rate=1.0,
            url=f"http://127.0.0.1:{free_port()}",
        )
    wrong_url = f"http://127.0.0.1:{service.port}/elsewhere"
    with (
        RetryingTraffic(wrong_url, key="", body=lambda _: {}, count=1, rate=1) as traffic,
        pytest.raises(StackError, match="404"),
    ):
        traffic.is_over(within=20)
