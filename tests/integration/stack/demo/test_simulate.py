"""Simulated traffic against a real service, its late labels in a real store."""

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
from stack.demo.simulate import People, simulate
from stack.demo.traffic import Answer, Traffic
from stack.example_data.scenario_names import Scenario
from tests.servers import free_port
from tests.services import make_service
from utils.clock import utc_now
from utils.errors import StackError, Unreachable

NOW = timedelta(0)


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    """credit_score itself: scenarios belong to a model's name."""
    made = make_service(settings, tmp_path_factory.mktemp("simulated"), "credit_score")
    made.deploy(1, made.store(1))
    with made.running():
        yield made


def run(service, scenario, *, requests=60, rate=300.0, labels_after=NOW, **further):
    return simulate(
        service.settings,
        service.spec,
        scenario=Scenario(scenario),
        requests=requests,
        rate=rate,
        labels_after=labels_after,
        url=f"http://127.0.0.1:{service.port}",
        **further,
    )


def logged(service, seed):
    """Logged predictions of the simulation's people, by entity."""
    return {row["entity_id"]: row for row in service.logged().values() if row["entity_id"].startswith(f"sim-{seed:x}-")}


def stored(service, seed):
    """What a training would read of the simulation's people."""
    now = utc_now()
    seq = latest_commit_seq(service.settings, "credit_score")
    read = {"start": now - timedelta(hours=1), "until": now, "window_end": now, "commit_seq": seq}
    rows = training_frame(service.settings, service.spec.store, **read)
    return rows[rows["entity_id"].str.startswith(f"sim-{seed:x}-")].set_index("entity_id")


def test_what_was_asked_is_logged_and_in_the_store_with_its_label_at_the_moment_of_the_prediction(service):
    done = run(service, "none", seed=101)
    assert (done.answered, done.refused, done.changed) == (60, 0, 0)
    assert (done.feature_rows, done.label_rows, done.labels_waiting) == (60, 60, 0)
    assert done.versions == {1: 60}
    asked, known = logged(service, 101), stored(service, 101)
    assert len(asked) == len(known) == 60
    for entity, row in asked.items():
        found = known.loc[entity]
        assert found["event_time"] == created_at(UUID(str(row["prediction_id"]))) == row["created_at"]
        assert found["credit_score"] in service.spec.label.classes
        for name, value in json.loads(row["features"]).items():
            assert value == found[name] if value is not None else pd.isna(found[name]), name


def test_a_scenario_begins_at_its_moment(service):
    done = run(service, "broken", seed=102)
    assert done.changed == 60
    rows = logged(service, 102).values()
    assert all("missing: monthly_inhand_salary" in json.loads(row["warnings"]) for row in rows)
    incomes = stored(service, 102)["annual_income"]
    assert incomes.max() < 1_000  # the store's source is the same broken one
    assert run(service, "broken", seed=105, since=utc_now() + timedelta(days=1)).changed == 0


def test_labels_that_are_late_are_kept_and_loaded_by_a_simulation_when_they_are_due(service):
    done = run(service, "none", seed=103, labels_after=timedelta(days=1))
    assert (done.feature_rows, done.label_rows, done.labels_waiting) == (60, 0, 60)
    assert done.labels_due > utc_now() + timedelta(hours=23)
    assert stored(service, 103).empty
    assert run(service, "none", requests=0).labels_waiting == 60
    (kept,) = (service.settings.home / "simulated" / "credit_score").iterdir()
    rows = pd.read_parquet(kept)
    rows.loc[:19, "due"] = pd.Timestamp(utc_now())
    rows.to_parquet(kept)
    some = run(service, "none", requests=0)
    assert (some.feature_rows, some.label_rows, some.labels_waiting) == (0, 20, 40)
    assert len(stored(service, 103)) == 20
    (left,) = (service.settings.home / "simulated" / "credit_score").iterdir()
    left.unlink()


def test_people_of_a_world_without_time_reach_the_store_too(settings):
    spec = find_spec(settings.models_dir, "churn")
    bootstrap.migrate(settings, [spec.store])
    people = People(spec, scenario=Scenario.BROKEN, since=None, count=20, seed=201)
    asked = [people.body(number)["data"] for number in range(20)]
    answered = [Answer(number, uuid4(), utc_now(), "stays", 1) for number in range(20)]
    late = LateLabels(settings, spec, delay=NOW, source="test", name="churn")
    late.load(people.features(answered), people.labels(answered))
    late.close()
    assert (late.feature_rows, late.label_rows, len(late.waiting)) == (20, 20, 0)
    now, seq = utc_now(), latest_commit_seq(settings, "churn")
    rows = training_frame(settings, spec.store, start=None, until=now, window_end=now, commit_seq=seq)
    known = rows.set_index("entity_id").loc[[body["customer_id"] for body in asked]]
    assert list(known["monthly_fee"]) == [body["monthly_fee"] for body in asked]
    assert known["hours_a_week"].isna().all()
    assert set(known["outcome"]) == {"stays", "leaves"}


def test_requests_are_never_sent_before_their_time(service):
    begun, rate = utc_now(), 50.0
    with Traffic(
        f"http://127.0.0.1:{service.port}", key="", body=lambda _: {"data": service.row}, count=30, rate=rate
    ) as traffic:
        while not traffic.is_over(within=1):
            pass
    assert sorted(answer.number for answer in traffic.answers) == list(range(30))
    for answer in traffic.answers:
        assert answer.at - begun >= timedelta(seconds=answer.number / rate - 0.01)


def test_a_refused_row_is_counted_and_the_traffic_goes_on(service):
    def body(number):
        return {"data": {**service.row, "age": 300 if number == 3 else 30}}

    with Traffic(f"http://127.0.0.1:{service.port}", key="", body=body, count=10, rate=500) as traffic:
        while not traffic.is_over(within=1):
            pass
    assert (len(traffic.answers), len(traffic.refusals)) == (9, 1)
    assert "age" in traffic.refusals[0]


def test_a_service_that_is_not_there_or_not_this_one_is_said_at_once(service):
    with pytest.raises(Unreachable, match="prediction service of credit_score"):
        simulate(
            service.settings,
            service.spec,
            scenario=Scenario.NONE,
            requests=1,
            rate=1.0,
            url=f"http://127.0.0.1:{free_port()}",
        )
    nowhere = f"http://127.0.0.1:{service.port}/elsewhere"
    with (
        Traffic(nowhere, key="", body=lambda _: {}, count=1, rate=1) as traffic,
        pytest.raises(StackError, match="404"),
    ):
        traffic.is_over(within=20)
