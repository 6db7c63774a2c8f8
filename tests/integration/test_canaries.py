"""Canaries: unmistakable values in private columns, sent every way, are in nothing that the system writes.

`PRIVATE` stands in private columns. `REFUSED` is a value of an allowed field that is refused: no log or table has it.
`SEEN` is a value that may be kept; finding it shows that the search would find the others.
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
    """The model, its folder for everything it writes, and a folder for what users hold: their files."""

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
        self.said = []  # what commands and answers said
        people = worlds.example_world("credit_score", end=END, customers=300)
        private = {"name": f"{PRIVATE}-name", "ssn": f"{PRIVATE}-ssn", "unknown": f"{PRIVATE}-unknown"}
        self.people = people.assign(**private, occupation=SEEN)
        bootstrap.migrate(self.settings, [self.spec.store])

    def command(self, *arguments):
        secrets = ("db_loader_password", "db_pipeline_password", "db_reader_password")
        given = {**os.environ, **settings_environment(self.settings, secrets=secrets)}
        done = evergreen(*arguments, environment=given, cwd=self.files)
        self.said.append(done.stdout + done.stderr)
        return done

    def file(self, name, frame, **how):
        frame.to_csv(self.files / name, index=False, **how)
        return name

    def task(self, airflow, name, conf):
        ran = airflow.run(self.folder / "models", f"{MODEL}_{name}", json.dumps(conf), settings=self.settings)
        self.said.append(ran["log"])
        return ran


@pytest.fixture(scope="module")
def world(mlflow_settings, tmp_path_factory):
    made = World(mlflow_settings, tmp_path_factory.mktemp("canaries"), tmp_path_factory.mktemp("users"))
    (made.folder / "airflow").mkdir()
    loads(made)
    with airflow(made.folder / "airflow") as own:
        tasks(made, own)
    serves(made)
    return made


def loads(world):
    """Features and labels, labels only, corrections; wrong rows, wrong headers, none."""
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


def tasks(world, airflow):
    """A training that pulls, wrong rows that it pulls, and scorings of good and wrong files."""
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
    claimed = promote.claim(world.settings, model=MODEL, run_id="d/canary", now=END)
    world.version = promote.promote(world.settings, decision_id=claimed["decision"])
    rollout.roll_out(world.settings, model=MODEL, version=world.version, caused_by="d/canary", reason="a test", now=END)
    for name, state in (("people.csv", "success"), ("wrong.csv", "failed")):
        conf = {"file": str(world.files / name), "table": "canary_scores", "out": str(world.folder / "out.parquet")}
        assert world.task(airflow, "scoring", conf)["tasks"] == {"score": state}
    for name in ("wrong.csv", "headless.csv"):
        assert world.command("score", MODEL, name).returncode == 4


def serves(world):
    """Requests with private and unknown keys, with values of wrong types and out of limits, and broken ones."""
    made = Service(world.settings, world.spec, free_port(), world.folder / "service.log")
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
    with made.running():
        prediction_id = made.post("/predict", {"data": row}).json()["prediction_id"]
        assert made.post("/feedback", {"prediction_id": prediction_id, "actual": "Good"}).status_code == 200
        answers = [made.post("/predict", {"data": {**row, **given}}) for given in bad]
        answers += [made.post("/predict_batch", {"data": [row, {**row, **given}]}) for given in bad]
        answers += [
            made.post("/predict", {"data": row, "ssn": PRIVATE}),
            made.post("/feedback", {"prediction_id": REFUSED, "actual": "Good"}),
            made.post("/feedback", {"prediction_id": prediction_id, "actual": REFUSED}),
            made.post("/predict", {"data": row}, headers={"Idempotency-Key": REFUSED}),
        ]
        url = f"http://127.0.0.1:{made.port}"
        for body, kind in (
            (f'{{"data": {{"ssn": "{PRIVATE}', "application/json"),
            (json.dumps({"data": {**row, "age": 1}}).replace("1", f'"{REFUSED}\\ud800"'), "application/json"),
            (f"ssn={PRIVATE}", "application/x-www-form-urlencoded"),
            (f'--x\r\nContent-Disposition: form-data; name="ssn"\r\n\r\n{PRIVATE}', "multipart/form-data; boundary=x"),
        ):
            sent = {"Content-Type": kind}
            answers.append(requests.post(f"{url}/predict", data=body.encode(), headers=sent, timeout=20))
        answers.append(requests.get(f"{url}/predict", params={"ssn": PRIVATE}, timeout=20))
        answers.append(requests.get(f"{url}/{PRIVATE}", timeout=20))
        assert {each.status_code for each in answers} <= {400, 401, 404, 405, 415}
        world.said += [each.text for each in answers]
        wait_for("rejects", lambda: made.query("SELECT * FROM request_reject WHERE model = :model"))
        world.metrics = made.get("/metrics").text
    world.said.append(world.metrics)


def tables(settings):
    """Every table of every database but the server's own and the users', as text by its name."""
    with session(settings, "root", "information_schema") as connection:
        names = connection.execute(
            text("SELECT table_schema, table_name FROM tables WHERE table_type = 'BASE TABLE'")
        ).all()
        for database, name in names:
            if database not in {*SYSTEM, "canary_crm"}:
                rows = connection.exec_driver_sql(f"SELECT * FROM `{database}`.`{name}`").all()
                yield f"{database}.{name}", "\n".join(str(tuple(row)) for row in rows)  # str of a Row is cut short


def files(*folders):
    """Every file below `folders` as text by its path, with what is compressed in it; bytes stand for themselves."""
    for path in (each for folder in folders for each in folder.rglob("*") if each.is_file()):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path, f"{table.schema.metadata}\n{table.to_pandas().to_csv()}"
        else:
            content = path.read_bytes()
            yield path, (gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1")


def written(world, tmp_path_factory):
    """All that the system wrote, by where it is."""
    mlflow = [each for each in tmp_path_factory.getbasetemp().iterdir() if each.name.startswith("mlflow")]
    yield from tables(world.settings)
    yield from files(world.folder, *mlflow)
    yield from ((f"said {number}", said) for number, said in enumerate(world.said))


@pytest.fixture(scope="module")
def places(world, tmp_path_factory):
    """Where each canary was found."""
    found: dict[str, set[str]] = {canary: set() for canary in (PRIVATE, REFUSED, SEEN)}
    for place, content in written(world, tmp_path_factory):
        for canary in found:
            if canary in content or canary.encode().hex() in content:
                found[canary].add(str(place))
    return found


def test_values_of_private_columns_are_nowhere(places):
    assert places[PRIVATE] == set()


def test_refused_values_are_in_no_table_and_no_log(world, places):
    """Only the terminal shows one, to who has its file, and the list of refused rows, which is theirs too."""
    lists = {place for place in places[REFUSED] if Path(place).is_relative_to(world.settings.rejects)}
    assert lists
    assert all(Path(place).stat().st_mode & 0o077 == 0 for place in lists)
    shown = {place for place in places[REFUSED] if place.startswith("said")}
    assert places[REFUSED] == shown | lists
    told = [world.said[int(place.removeprefix("said "))] for place in shown]
    assert told
    assert all(re.match(r"evergreen: wrong\.csv: ", each) for each in told)


def test_the_search_finds_what_may_be_kept_in_every_kind_of_place(world, places):
    found = places[SEEN]
    for table in ("evergreen_store.canary_features", "evergreen_store.canary_latest", "evergreen.prediction_log"):
        assert table in found
    assert any(place.endswith(".parquet") and "snapshots" in place for place in found)
    assert any("mlflow" in place and place.endswith("profile.json") for place in found)
    assert any("bento" in place and place.endswith("golden.json") for place in found)
    with session(world.settings, "reader") as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM request_reject WHERE model = 'canary'"))


def test_no_id_or_value_of_a_row_is_in_airflow(world):
    """Neither in its database, with XCom and the runs' settings, nor in what its tasks log."""
    places = [
        *files(world.folder / "airflow"),
        *(("a task's log", each) for each in world.said if "[DAG TEST]" in each),
    ]
    people = {*world.people["customer_id"], SEEN}
    for place, content in places:
        assert not [each for each in people if each in content], place
    told = [str(place) for place, content in places if f"{len(world.people):,} rows scored by version" in content]
    assert "a task's log" in told
    assert any(place.endswith("airflow.db") for place in told)
