"""Canaries: unique values in private columns, sent on every path, are in nothing that the system writes.

`PRIVATE` is a value of private columns. `REFUSED` is an invalid value of an allowed field: no log or table has it.
`SEEN` is a value that may be stored. Finding it proves that the search would also find the other two.
"""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests
import yaml
from sqlalchemy import text

from api.requests.row_type import example
from db.admin import bootstrap
from db.session import session
from pipelines.deployment import promote, rollout
from pipelines.spec import find_spec
from stack.example_data import worlds
from stack.programs.program import settings_environment
from tests.commands import evergreen
from tests.integration.conftest import END
from tests.integration.dags.runs import airflow
from tests.servers import free_port
from tests.services import Service, wait_for
from utils.version import ROOT

MODEL = "canary"
PRIVATE, REFUSED, SEEN = "CANARY-4d1f7a-PRIVATE", "CANARY-4d1f7a-REFUSED", "CANARY-4d1f7a-SEEN"
SYSTEM = ("information_schema", "performance_schema", "sys", "mysql")


class World:
    """The model, a folder for all that the system writes, and a folder for the files of users."""

    def __init__(self, settings, folder, files):
        (folder / "models").mkdir()
        file = yaml.safe_load((ROOT / "models" / "credit_score.yaml").read_text())
        file["name"], file["source"] = MODEL, {"event_time": "date", "query": "SELECT * FROM canary_crm.people"}
        file["training"] |= {"window": "360d", "split": {"by": "time", "validation": "30d", "test": "60d"}}
        file["training"]["search"] |= {"trials": 1, "space": {"depth": [3, 4], "learning_rate": [0.2, 0.3]}}
        file["gates"] = {"minimum": {"macro_f1": 0.3}, "min_rows": 100}
        (folder / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump(file))
        self.settings = settings.model_copy(
            update={"models_dir": folder / "models", "home": folder / "home", "serving_workers": 1}
        )
        self.spec = find_spec(folder / "models", MODEL)
        self.folder, self.files = folder, files
        self.outputs = []  # outputs of commands and tasks, and bodies of responses
        people = worlds.example_world("credit_score", end=END, customers=300)
        private = {"name": f"{PRIVATE}-name", "ssn": f"{PRIVATE}-ssn", "unknown": f"{PRIVATE}-unknown"}
        self.people = people.assign(**private, occupation=SEEN)
        bootstrap.migrate(self.settings, [self.spec.store])

    def command(self, *arguments):
        secrets = ("db_loader_password", "db_pipeline_password", "db_reader_password")
        environment = {**os.environ, **settings_environment(self.settings, secrets=secrets)}
        process = evergreen(*arguments, environment=environment, cwd=self.files)
        self.outputs.append(process.stdout + process.stderr)
        return process

    def file(self, name, frame, **options):
        frame.to_csv(self.files / name, index=False, **options)
        return name

    def task(self, airflow, name, conf):
        result = airflow.run(self.folder / "models", f"{MODEL}_{name}", json.dumps(conf), settings=self.settings)
        self.outputs.append(result["log"])
        return result


@pytest.fixture(scope="module")
def world(mlflow_settings, tmp_path_factory):
    new_world = World(mlflow_settings, tmp_path_factory.mktemp("canaries"), tmp_path_factory.mktemp("users"))
    (new_world.folder / "airflow").mkdir()
    load_files(new_world)
    with airflow(new_world.folder / "airflow") as own_airflow:
        run_tasks(new_world, own_airflow)
    send_requests(new_world)
    return new_world


def load_files(world):
    """Load features with labels, labels only, corrections, wrong rows, wrong headers and files without a header."""
    people, wrong = world.people, world.people.head(50).copy()
    wrong["age"] = wrong["age"].astype(object)
    wrong.loc[wrong.index[7], "age"] = REFUSED
    labels = ["customer_id", "date", "credit_score", "name", "ssn"]
    assert world.command("load", MODEL, world.file("people.csv", people)).returncode == 0
    assert world.command("load", MODEL, world.file("labels.csv", people[labels])).returncode == 0
    assert world.command("load", MODEL, world.file("again.csv", people.head(9).assign(age=33))).returncode == 0
    assert world.command("load", MODEL, world.file("wrong.csv", wrong)).returncode == 4
    assert world.command("load", MODEL, world.file("headless.csv", people.head(9), header=False)).returncode == 4
    bare = people.head(9)[["name", "ssn", "unknown"]]
    assert world.command("load", MODEL, world.file("bare.csv", bare, header=False)).returncode == 4
    twice = people.head(9)[["name", "name", "ssn"]]
    assert world.command("load", MODEL, world.file("twice.csv", twice, header=False)).returncode == 4
    cut = (world.files / "people.csv").read_text().splitlines()
    (world.files / "cut.csv").write_text("\n".join([*cut[:5], f"{PRIVATE},{PRIVATE}", *cut[5:9]]))
    assert world.command("load", MODEL, "cut.csv").returncode == 4


def run_tasks(world, airflow):
    """Run a training that pulls, one that pulls wrong rows, and scorings of good and wrong files."""
    with session(world.settings, "root", "information_schema") as connection:
        connection.execute(text("CREATE DATABASE IF NOT EXISTS canary_crm"))
        connection.execute(text("GRANT SELECT ON canary_crm.* TO evergreen_loader@'%'"))
        world.people.head(20).to_sql("people", connection, schema="canary_crm", index=False)
    conf = {"window_end": f"{END:%FT%TZ}", "reason": "a test", "trials": 1}
    assert world.task(airflow, "training", conf)["tasks"]["announce"] == "success"
    with session(world.settings, "root", "information_schema") as connection:
        connection.execute(text("ALTER TABLE canary_crm.people MODIFY age TEXT"))
        connection.execute(text("UPDATE canary_crm.people SET age = :value"), {"value": REFUSED})
    assert world.task(airflow, "training", conf)["tasks"]["pull"] == "failed"
    claim = promote.claim(world.settings, model=MODEL, run_id="d/canary", now=END)
    world.version = promote.promote(world.settings, decision_id=claim["decision"])
    rollout.roll_out(world.settings, model=MODEL, version=world.version, caused_by="d/canary", reason="a test", now=END)
    for name, state in (("people.csv", "success"), ("wrong.csv", "failed")):
        conf = {"file": str(world.files / name), "table": "canary_scores", "out": str(world.folder / "out.parquet")}
        assert world.task(airflow, "scoring", conf)["tasks"] == {"score": state}
    for name in ("wrong.csv", "headless.csv"):
        assert world.command("score", MODEL, name).returncode == 4


def send_requests(world):
    """Send requests with private and unknown keys, wrong types, values out of limits, and broken bodies."""
    service = Service(world.settings, world.spec, free_port(), world.folder / "service.log")
    row = {**example(world.spec), "occupation": SEEN}
    bad: list[dict[str, Any]] = [
        {"ssn": PRIVATE},
        {"name": {"ssn": [PRIVATE]}},
        {"age": REFUSED},
        {"credit_mix": REFUSED},
        {"occupation": [REFUSED]},
        {"type_of_loan": REFUSED * 400},
        {"customer_id": {"id": REFUSED}},
        {"customer_id": REFUSED * 9},
    ]
    with service.running():
        prediction_id = service.post("/predict", {"data": row}).json()["prediction_id"]
        assert service.post("/feedback", {"prediction_id": prediction_id, "actual": "Good"}).status_code == 200
        answers = [service.post("/predict", {"data": {**row, **fields}}) for fields in bad]
        answers += [service.post("/predict_batch", {"data": [row, {**row, **fields}]}) for fields in bad]
        answers += [
            service.post("/predict", {"data": row, "ssn": PRIVATE}),
            service.post("/feedback", {"prediction_id": REFUSED, "actual": "Good"}),
            service.post("/feedback", {"prediction_id": prediction_id, "actual": REFUSED}),
            service.post("/predict", {"data": row}, headers={"Idempotency-Key": REFUSED}),
        ]
        url = f"http://127.0.0.1:{service.port}"
        for body, kind in (
            (f'{{"data": {{"ssn": "{PRIVATE}', "application/json"),
            (json.dumps({"data": {**row, "age": 1}}).replace("1", f'"{REFUSED}\\ud800"'), "application/json"),
            (f"ssn={PRIVATE}", "application/x-www-form-urlencoded"),
            (f'--x\r\nContent-Disposition: form-data; name="ssn"\r\n\r\n{PRIVATE}', "multipart/form-data; boundary=x"),
        ):
            headers = {"Content-Type": kind}
            answers.append(requests.post(f"{url}/predict", data=body.encode(), headers=headers, timeout=20))
        answers.append(requests.get(f"{url}/predict", params={"ssn": PRIVATE}, timeout=20))
        answers.append(requests.get(f"{url}/{PRIVATE}", timeout=20))
        assert {answer.status_code for answer in answers} <= {400, 401, 404, 405, 415}
        world.outputs += [answer.text for answer in answers]
        wait_for("rejects", lambda: service.query("SELECT * FROM request_reject WHERE model = :model"))
        world.metrics = service.get("/metrics").text
    world.outputs.append(world.metrics)


def tables(settings):
    """The name and text of every table, except those of the server itself and of the users' database."""
    with session(settings, "root", "information_schema") as connection:
        names = connection.execute(
            text("SELECT table_schema, table_name FROM tables WHERE table_type = 'BASE TABLE'")
        ).all()
        for database, name in names:
            if database not in {*SYSTEM, "canary_crm"}:
                rows = connection.exec_driver_sql(f"SELECT * FROM `{database}`.`{name}`").all()
                yield f"{database}.{name}", "\n".join(str(tuple(row)) for row in rows)  # str(Row) is truncated


def files(*folders):
    """The path and text of every file below `folders`. Compressed content is unpacked; bytes are read as Latin-1."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path, f"{table.schema.metadata}\n{table.to_pandas().to_csv()}"
        else:
            content = path.read_bytes()
            yield path, (gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1")


def all_contents(world, tmp_path_factory):
    """The place and text of everything that the system wrote."""
    mlflow = [folder for folder in tmp_path_factory.getbasetemp().iterdir() if folder.name.startswith("mlflow")]
    yield from tables(world.settings)
    yield from files(world.folder, *mlflow)
    yield from ((f"output {number}", output) for number, output in enumerate(world.outputs))


@pytest.fixture(scope="module")
def places(world, tmp_path_factory):
    """The places that hold each canary."""
    places_of: dict[str, set[str]] = {canary: set() for canary in (PRIVATE, REFUSED, SEEN)}
    for place, content in all_contents(world, tmp_path_factory):
        for canary in places_of:
            if canary in content or canary.encode().hex() in content:
                places_of[canary].add(str(place))
    return places_of


def test_values_of_private_columns_are_in_no_place(places):
    assert places[PRIVATE] == set()


def test_refused_values_are_in_no_table_and_no_log(world, places):
    """Only the terminal and the list of refused rows show a refused value. The file's owner reads both."""
    lists = {place for place in places[REFUSED] if Path(place).is_relative_to(world.settings.rejects)}
    assert lists
    assert all(Path(place).stat().st_mode & 0o077 == 0 for place in lists)
    terminal = {place for place in places[REFUSED] if place.startswith("output")}
    assert places[REFUSED] == terminal | lists
    messages = [world.outputs[int(place.removeprefix("output "))] for place in terminal]
    assert messages
    assert all(re.match(r"evergreen: wrong\.csv: ", message) for message in messages)


def test_the_search_finds_allowed_values_in_every_kind_of_place(world, places):
    seen_places = places[SEEN]
    for table in ("evergreen_store.canary_features", "evergreen_store.canary_latest", "evergreen.prediction_log"):
        assert table in seen_places
    assert any(place.endswith(".parquet") and "snapshots" in place for place in seen_places)
    assert any("mlflow" in place and place.endswith("profile.json") for place in seen_places)
    assert any("bento" in place and place.endswith("golden.json") for place in seen_places)
    with session(world.settings, "reader") as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM request_reject WHERE model = 'canary'"))


def test_no_id_or_value_of_a_row_is_in_airflow(world):
    """The ids are neither in Airflow's database (with XCom and run settings) nor in the logs of its tasks."""
    places = [
        *files(world.folder / "airflow"),
        *(("a task's log", output) for output in world.outputs if "[DAG TEST]" in output),
    ]
    people = {*world.people["customer_id"], SEEN}
    for place, content in places:
        assert not [value for value in people if value in content], place
    scoring_places = [
        str(place) for place, content in places if f"{len(world.people):,} rows scored by version" in content
    ]
    assert "a task's log" in scoring_places
    assert any(place.endswith("airflow.db") for place in scoring_places)
