"""A real private stack without Airflow's servers: backed up while it answers, and continued in an empty folder."""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from api.log.spool import Spool, orphans
from db.history import trainings
from db.session import session
from pipelines import registry
from pipelines.runs import training_runs
from pipelines.runs.extract import read_rows
from pipelines.runs.snapshot import content_hash, read_snapshot
from pipelines.spec import find_spec
from stack.backup.archive import Archive, opened
from stack.backup.backup import DUMP, SETTINGS, BackupReport, backup
from stack.backup.restore import restore
from stack.down import down
from stack.programs import airflow_programs, secrets
from stack.programs.processes import ours
from tests.commands import EVERGREEN
from tests.private_stack import (
    END,
    MODEL,
    Stack,
    command,
    fill_airflow,
    new_stack,
    root,
    secrets_of,
    train_and_deploy,
    write_model,
)
from tests.services import wait_for
from utils.errors import DataRefused, IntegrityError, NotFound, StackError
from utils.settings import PLATFORM_DB, STORE_DB, Settings, load_settings

WEBHOOK = "https://hooks.example/T0/planted-webhook"


def nothing(doing: str, done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="egb"))  # not tmp_path: its name is too long for a socket
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def source(folder: Path) -> Iterator[Stack]:
    """A stack with a trained and deployed model, that answers."""
    further = {"ALERT_WEBHOOK": WEBHOOK, "SERVING_WORKERS": 1, "TIMEZONE": "Asia/Tokyo"}
    stack = Stack(secrets.ensure(new_stack(folder / "a", **further))[0])
    write_model(stack.settings.models_dir)
    try:
        stack.start()
        with ThreadPoolExecutor(1) as beside:
            airflow = beside.submit(fill_airflow, stack)
            train_and_deploy(stack)
            airflow.result()
        yield stack
    finally:
        down(stack.settings)


@dataclass(frozen=True, slots=True)
class Before:
    """What was so when the backup was made."""

    file: Path
    report: BackupReport
    answer: dict[str, Any]  # of the service
    row: dict[str, Any]  # what was asked


@pytest.fixture(scope="module")
def before(source: Stack, folder: Path) -> Before:
    row = {"customer_id": "C1", "annual_income": 52000, "outstanding_debt": 900, "credit_mix": "Standard"}
    answer = source.post("/predict", {"data": row})
    # Somebody holds Airflow's database open and has written what is not in its main file yet.
    with closing(sqlite3.connect(airflow_programs.folder(source.settings) / "airflow.db")) as busy:
        busy.execute("PRAGMA journal_mode = WAL")
        busy.execute("UPDATE dag SET is_paused = 0")
        busy.commit()
        file = folder / "kept.tar"
        report = backup(source.settings, file, now=END, progress=nothing)
    return Before(file, report, answer, row)


@pytest.fixture(scope="module")
def restored(before: Before, folder: Path) -> Iterator[Stack]:
    """Another stack, with other secrets and ports, whose state was an empty folder; it runs."""
    settings = new_stack(folder / "b", DB_API_PASSWORD="mine")
    restore(settings, before.file, force=False, progress=nothing)
    assert not (settings.home / "restoring").exists()
    stack = Stack(load_settings(env_file=settings.env_file))
    try:
        stack.start()
        yield stack
    finally:
        down(stack.settings)


def test_a_restored_stack_answers_with_the_same_version_and_the_same_prediction(
    before: Before, restored: Stack
) -> None:
    again = restored.post("/predict", {"data": before.row})
    told = ("prediction", "confidence", "probabilities", "model", "version")
    assert {name: again[name] for name in told} == {name: before.answer[name] for name in told}
    logged = {str(row["prediction_id"]) for row in restored.query("SELECT prediction_id FROM prediction_log")}
    assert {before.answer["prediction_id"], again["prediction_id"]} <= logged


def test_every_snapshot_has_its_recorded_hash_from_its_file_and_from_the_store(restored: Stack) -> None:
    found = restored.query("SELECT snapshot_id FROM snapshot")
    assert found
    for row in found:
        snapshot = read_snapshot(row["snapshot_id"], settings=restored.settings)
        run = training_runs.load_run(restored.settings, "t/kept")
        assert content_hash(read_rows(run, settings=restored.settings)) == snapshot.manifest.content_sha256


def test_an_old_prediction_still_leads_back_to_its_run_and_its_model_in_mlflow(before: Before, restored: Stack) -> None:
    with session(restored.settings, "reader") as connection:
        row = trainings.lineage(connection, before.answer["prediction_id"])
    assert row is not None
    tags = registry.version_tags(restored.settings, MODEL, before.answer["version"])
    assert tags["run_id"] == "t/kept"
    assert registry.load(restored.settings, MODEL, before.answer["version"]).spec == restored.spec


def test_the_triggers_of_mlflow_are_there_under_our_own_name(source: Stack, restored: Stack) -> None:
    names, definers = (
        [
            root(stack.settings, f"SELECT {column} FROM information_schema.triggers ORDER BY 1")
            for stack in (source, restored)
        ]
        for column in ("trigger_name", "DISTINCT definer")
    )
    assert names[0] == names[1] != []
    assert definers == [[("evergreen_mlflow@%",)], [("evergreen_admin@%",)]]


def test_airflow_keeps_its_pauses_and_connections_but_no_password(before: Before, restored: Stack) -> None:
    assert restored.airflow("SELECT is_paused FROM dag") == [(0,)]
    assert restored.airflow("SELECT conn_id, host, password, extra FROM connection ORDER BY 1") == [
        ("crm", "db.example", None, None),
        ("feature_store", "db.example", None, None),
    ]
    assert before.report.left_out == ["password and extra of Airflow's connection crm", "Airflow's variable token"]


def test_settings_of_the_target_and_its_secrets_stay_and_the_backups_fill_the_rest(
    source: Stack, restored: Stack
) -> None:
    kept, made = source.settings, restored.settings
    assert (made.serving_workers, made.timezone) == (kept.serving_workers, kept.timezone) == (1, "Asia/Tokyo")
    assert made.serving_port != kept.serving_port
    assert made.db_password("api") == "mine"
    assert not set(secrets_of(made)) & set(secrets_of(kept))
    assert made.alert_webhook == ""
    assert stat.S_IMODE(made.env_file.stat().st_mode) == 0o600


def contents(archive: Archive) -> Iterator[tuple[str, bytes]]:
    for name in [*archive.names(), "manifest.json"]:
        content = archive.read(name)
        if name == DUMP:
            content = pa.input_stream(pa.py_buffer(content), compression="zstd").read()
        yield name, content


def test_no_member_of_the_archive_holds_a_secret(source: Stack, before: Before) -> None:
    wanted = [WEBHOOK, *secrets_of(source.settings)]
    assert len(wanted) > 10
    encrypted = [row[0] for row in source.airflow("SELECT password FROM connection UNION SELECT val FROM variable")]
    hashes = [row[0] for row in root(source.settings, "SELECT authentication_string FROM mysql.user")]
    assert len([value for value in hashes if value]) > 5
    with opened(before.file) as archive:
        found = dict(contents(archive))
    for name, content in found.items():
        for value in filter(None, [*wanted, *encrypted, *hashes]):
            assert value.encode() not in content, f"{name} holds {value[:4]}…"
    assert MODEL.encode() in found[DUMP]  # what is there can be found
    assert b"EVERGREEN_SERVING_WORKERS=1\n" in found[SETTINGS]
    assert not [name for name in found if "passwords" in name or name.endswith(".cfg")]


def test_the_file_is_its_owners_and_its_manifest_tells_what_is_in_it(source: Stack, before: Before) -> None:
    assert stat.S_IMODE(before.file.stat().st_mode) == 0o600
    with tarfile.open(before.file) as tar:  # by tar's own rules too
        members = {member.name: member.size for member in tar.getmembers()}
        manifest = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        current = json.loads(tar.extractfile(f"home/bento/{MODEL}/current.json").read())  # type: ignore[union-attr]
    assert {name: said["size"] for name, said in manifest["members"].items()}.items() <= members.items()
    assert manifest["revision"] == source.query("SELECT version_num FROM alembic_version")[0]["version_num"]
    assert current["version"] == before.answer["version"]
    for table in (f"{STORE_DB}.{MODEL}_features", f"{STORE_DB}.{MODEL}_labels", f"{PLATFORM_DB}.load_batch"):
        assert manifest["rows"][table] == source.query(f"SELECT COUNT(*) AS n FROM {table}")[0]["n"] > 0
    assert set(manifest["versions"]) >= {"python", "mariadb", "mlflow", "apache-airflow"}
    assert before.report.rows == sum(manifest["rows"].values())


def test_rows_that_arrive_during_a_backup_are_in_all_of_it_or_in_none(source: Stack, folder: Path) -> None:
    """One writer adds to two tables of two databases in one transaction, all the time."""
    program = f"""
import sys, pymysql
c = pymysql.connect(host="127.0.0.1", port={source.settings.mariadb_port}, user="root", password=sys.argv[1])
q = c.cursor()
while True:
    q.execute("INSERT INTO evergreen.pair VALUES ()"); q.execute("INSERT INTO optuna.pair VALUES ()"); c.commit()
"""
    with session(source.settings, "root", "mysql") as connection:
        for name in ("evergreen.pair", "optuna.pair"):
            connection.execute(text(f"CREATE TABLE {name} (n INT AUTO_INCREMENT PRIMARY KEY)"))
    writer = subprocess.Popen([sys.executable, "-c", program, source.settings.db_password("root")])
    try:
        wait_for("rows", lambda: root(source.settings, "SELECT COUNT(*) FROM optuna.pair")[0][0] > 100)
        backup(source.settings, folder / "busy.tar", now=END, progress=nothing)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
        with session(source.settings, "root", "mysql") as connection:
            connection.execute(text("DROP TABLE evergreen.pair, optuna.pair"))
    with opened(folder / "busy.tar") as archive:
        rows = archive.manifest["rows"]
    assert rows["evergreen.pair"] == rows["optuna.pair"] >= 100


def test_what_is_answered_and_not_yet_logged_is_in_the_backup_while_its_worker_lives(
    source: Stack, folder: Path
) -> None:
    spool = Spool(source.settings.spool / "m", "alive")
    spool.put([("answered",)], now=END)
    try:
        backup(source.settings, folder / "spooled.tar", now=END, progress=nothing)
    finally:
        spool.remove([1])
        spool.close()
    with tarfile.open(folder / "spooled.tar") as archive:
        archive.extract("home/spool/m/alive.db", folder / "out", filter="data")
    with orphans(folder / "out" / "home" / "spool" / "m") as found:
        assert [spool.take(after=0, most=9) for spool in found] == [[(1, ["answered"])]]


def test_a_damaged_a_cut_and_a_foreign_file_are_refused_and_leave_nothing(before: Before, folder: Path) -> None:
    settings = new_stack(folder / "d")
    content = before.file.read_bytes()
    with tarfile.open(before.file) as tar:
        at = tar.getmember(DUMP).offset_data + 1000
        manifest = tar.getmember("manifest.json").offset_data
    damaged = folder / "damaged.tar"
    for what, made in {
        DUMP: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "manifest.json": content[: manifest + 20] + b"7" + content[manifest + 21 :],
        "a whole backup": content[: len(content) // 2],
        "found invalid header": b"no tar at all" * 100,
        "manifest.json at its end": content[: manifest - 512],
    }.items():
        damaged.write_bytes(made)
        with pytest.raises(IntegrityError, match=what):
            restore(settings, damaged, force=False, progress=nothing)
    with pytest.raises(NotFound):
        restore(settings, folder / "absent.tar", force=False, progress=nothing)
    assert [path.name for path in settings.home.iterdir()] == ["run"]


def test_a_backup_of_newer_code_is_refused_with_the_commit_to_use(before: Before, folder: Path) -> None:
    newer = folder / "newer.tar"
    with tarfile.open(before.file) as old, tarfile.open(newer, "w") as new:
        for member in old.getmembers():
            content = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name == "manifest.json":
                manifest = content = json.dumps({**json.loads(content), "revision": "9999", "commit": "abc"}).encode()
            if member.name == "manifest.json.sha256":
                content = f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n".encode()
            new.addfile(replace_size(member, len(content)), pa.BufferReader(content))
    with pytest.raises(DataRefused, match=r"revision 9999; here 0004.*check out abc"):
        restore(new_stack(folder / "e"), newer, force=False, progress=nothing)


def replace_size(member: tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    member.size = size
    return member


def test_a_folder_with_data_and_one_that_runs_are_refused_and_force_replaces_the_first(
    source: Stack, before: Before, folder: Path
) -> None:
    with pytest.raises(StackError, match="make down"):
        restore(source.settings, before.file, force=True, progress=nothing)
    settings = new_stack(folder / "f")
    (settings.home / "snapshots").mkdir(parents=True)
    (settings.home / "snapshots" / "old.parquet").touch()
    settings.models_dir.mkdir()
    (settings.models_dir / f"{MODEL}.yaml").write_text("name: mine")
    with pytest.raises(DataRefused, match=r"snapshots; .*kept_score\.yaml, which differs.*FORCE=1"):
        restore(settings, before.file, force=False, progress=nothing)
    assert (settings.home / "snapshots" / "old.parquet").exists()
    kill_while_it_restores(settings, before.file)
    assert (settings.home / "snapshots" / "old.parquet").exists()
    done = command(settings, "restore", str(before.file), "--force")
    assert "`make up` continues from there" in done.stdout
    assert "not in the backup: password and extra of Airflow's connection crm" in done.stderr
    assert not (settings.home / "snapshots" / "old.parquet").exists()
    assert not ours(settings.model_copy(update={"home": settings.home / "restoring" / "home"}))
    assert find_spec(settings.models_dir, MODEL) == source.spec
    with pytest.raises(DataRefused, match="mariadb"):
        restore(settings, before.file, force=False, progress=nothing)


def kill_while_it_restores(settings: Settings, file: Path) -> None:
    restoring = settings.home / "restoring" / "home"
    argv = [EVERGREEN, "restore", str(file), "--force"]
    killed = subprocess.Popen(argv, env={**os.environ, "EVERGREEN_ENV_FILE": str(settings.env_file)})
    try:
        wait_for("its MariaDB", lambda: (restoring / "mariadb" / STORE_DB).exists())
    finally:
        killed.kill()
        killed.wait()
    assert ours(settings.model_copy(update={"home": restoring}))  # its MariaDB is left, for the next one to end


def test_without_mariadb_and_without_a_folder_there_is_no_file(source: Stack, folder: Path) -> None:
    away = source.settings.model_copy(update={"db_admin_password": SecretStr("wrong")})
    for settings, file in ((away, folder / "never.tar"), (source.settings, folder / "absent" / "never.tar")):
        with pytest.raises(Exception, match=r"refuses user|no folder"):
            backup(settings, file, now=END, progress=nothing)
        assert not file.exists()
    assert not list(folder.glob(".never*"))


def test_the_command_writes_into_the_folder_it_is_called_in_and_says_so_to_machines(
    source: Stack, folder: Path
) -> None:
    said = json.loads(command(source.settings, "backup", "--json", cwd=folder).stdout)
    assert (folder / said["file"]).stat().st_size == said["size"]
